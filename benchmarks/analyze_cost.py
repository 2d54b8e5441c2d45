"""What `fusionkit analyze entropy` costs over the bare forward, and whether its memory stays flat.

    OMP_NUM_THREADS=1 python benchmarks/analyze_cost.py --out benchmarks/results/cpu/analyze_cost.json

Cost: the encoder alone and with the entropies of chosen layers, alternating, the order swapped every round; a round's
ratio is of CPU seconds of this process (the machine may be shared), and `again` is the encoder alone against itself: the
noise. Memory: resident size while entropies of every layer of so many pictures stream to disk.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from fusionkit.analysis.measures import measure_entropy
from fusionkit.analysis.outcome import Frame
from fusionkit.analysis.photos import find_photos
from fusionkit.analysis.stream import run
from fusionkit.analysis.subjects import subjects
from fusionkit.bench.machine import facts


def cost(word: str, layers: list[int], batch: int, rounds: int) -> dict[str, Any]:
    """CPU milliseconds per picture and ratios to the bare forward."""
    (subject,) = subjects([word])
    encoder: Any = subject.open()
    x_BCHW = torch.randn(batch, 3, *subject.info.input_size, generator=torch.Generator().manual_seed(0))

    def bare() -> None:
        with torch.inference_mode():
            encoder.forward_layers(x_BCHW, [max(layers)])

    def measured() -> None:
        measure_entropy(encoder, subject.info, x_BCHW, layers)

    variants: dict[str, Callable[[], None]] = {"bare": bare, "again": bare, "entropy": measured}
    for variant in variants.values():
        variant()
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds):
        for name in list(variants)[:: 1 if number % 2 else -1]:
            start = time.process_time()
            variants[name]()
            times[name].append(time.process_time() - start)
    ratios = {name: [value / alone for value, alone in zip(times[name], times["bare"], strict=True)] for name in times}
    return {
        "encoder": word,
        "layers": layers,
        "tokens": subject.info.grid.tokens + subject.info.prefix_tokens,
        "batch": batch,
        "rounds": rounds,
        "bare_ms_per_picture": round(1000 * statistics.median(times["bare"]) / batch, 1),
        "ratio": {
            name: [round(value, 3) for value in statistics.quantiles(found, n=4)]
            for name, found in ratios.items()
            if name != "bare"
        },
    }


def memory(word: str, pictures: int, batch: int) -> dict[str, Any]:
    """Resident MiB while every layer of `pictures` pictures is measured; the first eighth is warm-up."""
    (subject,) = subjects([word])
    encoder, seen = subject.open(), []
    layers = list(range(1, subject.info.depth + 1))

    def work(encoder: Any, x_BCHW: torch.Tensor) -> list[dict[str, Any]]:
        rows, _ = measure_entropy(encoder, subject.info, x_BCHW, layers)
        seen.append(_resident())
        return rows

    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        photos.mkdir()
        for number in range(pictures):
            Image.effect_noise((320, 240), 60).convert("RGB").save(photos / f"{number:05d}.jpg")
        start = time.process_time()
        run("entropy", subject, encoder, find_photos(photos), {}, work, Frame(Path(folder) / "out", batch=batch))
        seconds = time.process_time() - start
    warm = seen[len(seen) // 8 :]
    return {
        "encoder": word,
        "layers": layers,
        "pictures": pictures,
        "cpu_seconds": round(seconds),
        "resident_mib": {"after_warm_up": round(warm[0]), "most": round(max(warm)), "last": round(warm[-1])},
    }


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="timm,model=vit_small_patch16_224.dino,weights=random")
    parser.add_argument("--layers", default="3,6,9,12")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    result = {
        "command": f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', '')} python {' '.join(sys.argv)}",
        "date": datetime.now(UTC).date().isoformat(),
        **facts("cpu"),
        "cost": cost(given.encoder, [int(layer) for layer in given.layers.split(",")], given.batch, given.rounds),
        "memory": memory(given.encoder, given.pictures, given.batch),
    }
    given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({"cost": result["cost"], "memory": result["memory"]}, indent=2))


if __name__ == "__main__":
    main()
