"""Whether `fusionkit analyze` probe, redundancy and correspond keep their memory flat over many pictures.

    OMP_NUM_THREADS=1 python benchmarks/analyze_memory.py --out benchmarks/results/cpu/analyze_memory.json

Resident size of this process at every batch, while 12 layers of a ViT are measured; the first eighth is warm-up, and the sizes
of the sums on disk at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from PIL import Image

from fusionkit.analysis import correspond, probe, redundancy
from fusionkit.analysis.annotated import open_data
from fusionkit.analysis.outcome import Frame
from fusionkit.analysis.photos import find_photos
from fusionkit.analysis.subjects import subjects
from fusionkit.bench.machine import facts


def resident() -> float:
    """MiB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def watched(run: Callable[[Frame], Any], folder: Path, batch: int) -> dict[str, Any]:
    """CPU seconds, and resident MiB by the calls of progress."""
    seen: list[float] = []
    start = time.process_time()
    run(Frame(folder, batch=batch, progress=lambda what, done, total: seen.append(resident())))
    warm = seen[len(seen) // 8 :]
    return {
        "cpu_seconds": round(time.process_time() - start),
        "resident_mib": {"after_warm_up": round(warm[0]), "most": round(max(warm)), "last": round(warm[-1])},
        "sums_mib": round(sum(file.stat().st_size for file in folder.rglob("*.safetensors")) / 2**20, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="timm,model=vit_small_patch16_224.dino,weights=random,image_size=64")
    parser.add_argument("--other", default="small_vit")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    one, other = subjects([given.encoder, given.other])
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        (root / "photos").mkdir()
        for number in range(given.pictures):
            Image.effect_noise((96, 72), 60).convert("RGB").save(root / "photos" / f"{number:05d}.jpg")
        photos, data = find_photos(root / "photos"), open_data("synthetic_scenes,seed=1")
        runs: dict[str, Callable[[Frame], Any]] = {
            "probe": lambda frame: probe.analyse([one], data, frame, samples=given.pictures),
            "redundancy": lambda frame: redundancy.analyse([one], photos, frame),
            "correspond": lambda frame: correspond.analyse([one, other], photos, frame, show=1),
        }
        measured = {}
        for name, run in runs.items():
            measured[name] = watched(run, root / name, given.batch)
            print(name, json.dumps(measured[name]), flush=True)
    result = {
        "command": f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', '')} python {' '.join(sys.argv)}",
        "date": datetime.now(UTC).date().isoformat(),
        **facts("cpu"),
        "encoder": given.encoder,
        "pictures": given.pictures,
        "layers": one.info.depth,
        "memory": measured,
    }
    given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
