"""Does the cost of mixing and connecting grow in proportion to layers, crops and tokens?

    python benchmarks/growth.py --out benchmarks/results/cpu/growth.json

Along each axis, sizes are visited in shuffled rounds; of each size the least processor time over the rounds is kept
(what disturbs a run only makes it longer), and a straight line is fitted by least squares. R² is 1 for a line. The
counted FLOPs are fitted too: those have no noise.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fusionkit.bench.cases import case_of, find_block
from fusionkit.bench.machine import facts
from fusionkit.bench.run import costs
from fusionkit.bench.shape import Shape
from fusionkit.bench.variants import Setting, Variant, prepare
from fusionkit.bench.work import Work
from fusionkit.geometry import Grid

SETTING = Setting()
LEAST = 0.03
"""Seconds of processor time that a size is called for in each round."""


@dataclass(frozen=True)
class Axis:
    """One block, and the shapes along one axis."""

    block: str
    options: dict[str, Any]
    name: str
    shapes: dict[int, Shape]


def axes() -> list[Axis]:
    mixer = {"width": 192, "grid": Grid(16, 16)}
    found = []
    for share in ("layer", "encoder"):
        options = {"share": share}
        layers = {n: Shape(layers=n, **mixer) for n in (4, 10, 16, 22, 28)}
        crops = {n: Shape(layers=8, crops=n, **mixer) for n in (1, 4, 7, 10, 13)}
        tokens = {16 * h: Shape(layers=8, width=192, grid=Grid(h, 16)) for h in (8, 18, 28, 38, 48)}
        for name, shapes in (("layers", layers), ("crops", crops), ("tokens", tokens)):
            found.append(Axis("mixers/orthogonal", options, name, shapes))
    pair = {"width": 192, "memory_grid": Grid(12, 12), "memory_width": 192}
    crops = {n: Shape(grid=Grid(16, 16), crops=n, **pair) for n in (1, 4, 7, 10, 13)}
    tokens = {16 * h: Shape(grid=Grid(h, 16), **pair) for h in (8, 18, 28, 38, 48)}
    for name, shapes in (("crops", crops), ("query tokens", tokens)):
        found.append(Axis("connectors/rope_cross_attention", {"heads": 4}, name, shapes))
    return found


def r_squared(xs: list[float], ys: list[float]) -> float | None:
    """None where y does not change: one map is one product, however many layers there are."""
    return None if len(set(ys)) == 1 else round(statistics.correlation(xs, ys) ** 2, 5)


def measure(axis: Axis, rounds: int) -> dict[str, Any]:
    cases = {size: case_of(find_block(axis.block), axis.options, shape) for size, shape in axis.shapes.items()}
    works = {size: prepare(Variant("fusionkit", case), SETTING) for size, case in cases.items()}
    least: dict[int, float] = {}
    order = random.Random(0)
    for work in works.values():
        work.call()
    for _ in range(rounds):
        sizes = list(works)
        order.shuffle(sizes)
        for size in sizes:
            least[size] = min(least.get(size, float("inf")), processor_seconds(works[size]))
    xs = [float(size) for size in works]
    times, flops = [least[size] for size in works], [float(costs(case, SETTING)[0]) for case in cases.values()]
    return {
        "block": axis.block,
        "options": axis.options,
        "axis": axis.name,
        "sizes": list(works),
        "cpu_ms": [round(1e3 * value, 4) for value in times],
        "r2_time": r_squared(xs, times),
        "r2_flops": r_squared(xs, flops),
    }


def processor_seconds(work: Work) -> float:
    """The least of several calls."""
    best, spent = float("inf"), 0.0
    while spent < LEAST:
        before = time.thread_time()
        work.call()
        took = time.thread_time() - before
        best, spent = min(best, took), spent + took
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for axis in axes():
        rows.append(measure(axis, options.rounds))
        row = rows[-1]
        print(f"{row['block']} {row['options']} {row['axis']}: R² {row['r2_time']}", file=sys.stderr)
    command = shlex.join(["python", *sys.argv])
    stored = {"command": command, "date": time.strftime("%Y-%m-%d"), **facts("cpu"), "rows": rows}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
