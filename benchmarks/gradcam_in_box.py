"""How much of a Grad-CAM map lies in the box that was asked for, by three ways to make the map.

    OMP_NUM_THREADS=1 python benchmarks/gradcam_in_box.py --out benchmarks/results/cpu/gradcam_in_box.json

On synthetic scenes that `checkpoint:tiny` has not seen, for questions that one box answers: the gradient of the true
answer's log-likelihood at every layer that a stream reads and at the fused tokens. A map that knows nothing of the
place has the box's share of the picture. `first published`: channels weighted by the mean of their gradient over the
picture; `contribution` and `sensitivity` are what `fusionkit analyze gradcam` draws.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusionkit import registry
from fusionkit.analysis.gradients import explain, tokens_to_maps
from fusionkit.analysis.running import Running
from fusionkit.bench.machine import facts
from fusionkit.geometry import Box, Grid, Size
from fusionkit.model.checkpoint import load_checkpoint
from fusionkit.model.parts import build_object
from fusionkit.sample import Sample

KINDS = ("first published", "contribution", "sensitivity")


def maps_of(x_CND: Tensor, g_CND: Tensor) -> dict[str, Tensor]:
    """The maps of one picture: [N] each."""
    weights_C1D = g_CND.mean(1, keepdim=True)
    published_CN = (x_CND * weights_C1D).sum(-1).clamp(min=0)
    return {
        "first published": published_CN[0],
        **{kind: map_CN[0] for kind, map_CN in tokens_to_maps(x_CND, g_CND).items()},
    }


def cells_in(box: Box, grid: Grid, size: Size) -> Tensor:
    """Which cells of a grid the box touches: [N]."""
    top, left = (
        torch.arange(grid.height) * size.height / grid.height,
        torch.arange(grid.width) * size.width / grid.width,
    )
    rows = (top + size.height / grid.height > box.y0) & (top < box.y1)
    columns = (left + size.width / grid.width > box.x0) & (left < box.x1)
    return (rows[:, None] & columns).flatten()


def measure(samples: int, seed: int) -> dict[str, Any]:
    """Mean share of each map inside the asked box, by place and kind; `chance` is the share of cells inside it."""
    model, processor = load_checkpoint("checkpoint:tiny")
    spec = registry.spec("datasets", "synthetic_scenes")
    scenes = build_object("datasets", spec.config.model_validate({"type": spec.name, "seed": seed, "samples": samples}))
    found: dict[str, dict[str, Running]] = {}
    for index in range(samples):
        scene = scenes[index]
        for turn in scene.turns:
            if turn.kind != "box" or len(turn.boxes) != 1:
                continue
            asked = Sample(scene.open_image, scene.size, (turn,), scene.provenance)
            explained = explain(model, processor, asked, maps_of=maps_of)
            for place, maps in explained.maps.items():
                inside_N = cells_in(turn.boxes[0], explained.grids[place], scene.size)
                row = found.setdefault(place, {kind: Running() for kind in ("chance", *KINDS)})
                row["chance"].add(float(inside_N.float().mean()))
                for kind, map_N in maps.items():
                    if map_N.sum() > 0:
                        row[kind].add(float(map_N[inside_N].sum() / map_N.sum()))
    return {
        place: {kind: {"mean": round(run.mean, 3), "count": run.count} for kind, run in row.items()}
        for place, row in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    result = {
        "command": f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', '')} python {' '.join(sys.argv)}",
        "date": datetime.now(UTC).date().isoformat(),
        **facts("cpu"),
        "share of the map in the asked box": measure(given.samples, given.seed),
    }
    given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result["share of the map in the asked box"], indent=2))


if __name__ == "__main__":
    main()
