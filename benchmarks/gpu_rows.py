"""Everything that only a GPU can measure, in one command of at most eight minutes.

    python benchmarks/gpu_rows.py                       # on a machine with a CUDA device
    python benchmarks/gpu_rows.py --rehearse --out DIR  # the same jobs on a CPU with small shapes: does all of it run?
    python benchmarks/goals.py                          # the table of goals, filled from what is stored

Writes one file of rows for each job to benchmarks/results/<device>/. A job begins only while there is time left, and one that
did not begin is named at the end; nothing is estimated. A rehearsal's numbers mean nothing and belong in no results folder.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch's profiler loads

import torch

from fusionkit.bench.answers import run_answers
from fusionkit.bench.cases import case_of, cases_from_recipe, find_block
from fusionkit.bench.machine import facts
from fusionkit.bench.run import run
from fusionkit.bench.shape import parse_shape
from fusionkit.bench.variants import Setting
from fusionkit.recipe import load_recipe

MINUTES = 8.0
Rows = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class Job:
    """What goes to one file; `small` stands in on a CPU."""

    name: str
    full: Callable[[Setting], Rows]
    small: Callable[[Setting], Rows]
    dtype: str = "bf16"


def block(address: str, shape: str, options: dict[str, Any] | None = None, **how: Any) -> Callable[[Setting], Rows]:
    def rows(setting: Setting) -> Rows:
        case = case_of(find_block(address), options or {}, parse_shape(shape))
        return run([case], setting, **{"rounds": 7, "seconds": 20.0, **how})

    return rows


def vision(recipes: tuple[str, ...], crops: int, **how: Any) -> Callable[[Setting], Rows]:
    def rows(setting: Setting) -> Rows:
        cases = [cases_from_recipe(load_recipe(f"builtin:{name}"), crops, ["vision"])[0][0] for name in recipes]
        return run(cases, setting, **{"rounds": 5, "seconds": 20.0, **how})

    return rows


def answers(recipes: tuple[str, ...], lengths: tuple[int, ...], rounds: int, **how: Any) -> Callable[[Setting], Rows]:
    def rows(setting: Setting) -> Rows:
        loaded = [load_recipe(f"builtin:{name}") for name in recipes]
        return run_answers(loaded, setting, lengths, rounds=rounds, **how)

    return rows


SMALL = {"rounds": 1, "ceiling_scale": 0.02}
MIX, CONNECTOR = "mixers/orthogonal", "connectors/rope_cross_attention_released"
RELEASED = {"width": 3584, "heads": 8, "radius": 0.25}
AT = "grid=12x12,width=1152,memory_grid=7x7,memory_width=1024"
TINY_MIX, TINY_PAIR = "layers=3,grid=4x4,width=16,crops=2", "grid=4x4,width=16,memory_grid=2x2"
SINGLE = ("molmo_siglip2", "come_vl", "come_vl_released", "molmo", "comm_channel", "comm_token")

JOBS = (
    Job(
        "answers",
        answers(SINGLE, (10, 30, 65), 5),
        answers(("tiny_semantic", "tiny"), (2, 3), 1, ceiling_scale=0.02),
    ),
    Job(
        "mix_shared",
        block(
            MIX,
            "layers=27,grid=24x24,width=1152,crops=13",
            {"share": "encoder"},
            against=["torch_orthogonal_cached"],
            backends=["triton", "compile"],
        ),
        block(MIX, TINY_MIX, {"share": "encoder"}, backends=["triton"], **SMALL),
    ),
    Job(
        "mix_per_layer",
        block(
            MIX,
            "layers=27,grid=24x24,width=1152,crops=13",
            against=["torch_orthogonal", "torch_orthogonal_cached", "formula_cached"],
        ),
        block(MIX, TINY_MIX, **SMALL),
    ),
    *(
        Job(
            f"connector_{crops}",
            block(CONNECTOR, f"{AT},crops={crops}", RELEASED, backends=["graph", "compile", "efficient", "math"]),
            block(CONNECTOR, f"{TINY_PAIR},crops={crops}", {"width": 24, "heads": 2}, **SMALL),
        )
        for crops in (1, 2, 13)
    ),
    Job(
        "vision",
        vision(("molmo_siglip2", "come_vl"), 13),
        vision(("tiny_semantic", "tiny"), 2, **SMALL),
    ),
    Job(
        "vision_released",
        vision(("come_vl_released",), 13, backends=["triton"]),
        vision(("tiny",), 2, backends=["triton"], **SMALL),
    ),
    *(
        Job(
            f"vision_{crops}",
            vision(("come_vl",), crops, seconds=8.0),
            vision(("tiny",), crops, **SMALL),
        )
        for crops in (1, 2, 5)
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="small shapes on a CPU")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/<device>")
    options = parser.parse_args()
    if not options.rehearse and not torch.cuda.is_available():
        print(
            "not measured: torch finds no CUDA device here (--rehearse --out DIR runs small shapes on a CPU)",
            file=sys.stderr,
        )
        return 2
    if options.rehearse and options.out is None:
        parser.error("--rehearse needs --out: its numbers belong in no results folder")
    device = "cpu" if options.rehearse else "cuda"
    folder = options.out or Path(__file__).parent / "results" / slug(facts(device)["device"])
    folder.mkdir(parents=True, exist_ok=True)
    began, failed, late = time.monotonic(), 0, []
    for job in JOBS:
        if time.monotonic() - began > 60 * options.minutes * 0.85:
            late.append(job.name)
            continue
        rows = (job.small if options.rehearse else job.full)(
            Setting("fwd", "fp32" if options.rehearse else job.dtype, device)
        )
        try:
            failed += write(rows, folder / f"{job.name}.jsonl", job.name)
        except Exception as error:  # what one job stumbles over must not cost the others their time on the device
            failed += 1
            print(f"{job.name}: fail: {type(error).__name__}: {error}", file=sys.stderr)
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()  # the next job looks at what is free
        print(f"{job.name}: done after {time.monotonic() - began:.0f} s", file=sys.stderr)
    if late:
        print(f"not measured, no time left: {', '.join(late)} (give --minutes)", file=sys.stderr)
    return 1 if failed or late else 0


def write(rows: Rows, path: Path, name: str) -> int:
    """Write rows as they come, tell of those that are not ok, and count those that failed."""
    failed = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            file.flush()
            failed += row["status"] == "fail"
            if row["status"] != "ok":
                told = f"{name}: {row['status']}: {row['address']} {row['variant']}: {row['reason']}"
                print(told, file=sys.stderr)
    return failed


def slug(device: str) -> str:
    """`nvidia_h100_80gb_hbm3`."""
    return re.sub(r"[^a-z0-9]+", "_", device.lower()).strip("_")


if __name__ == "__main__":
    sys.exit(main())
