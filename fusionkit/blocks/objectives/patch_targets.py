"""Which object does each token stand on? The truth that patch objectives are trained with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusionkit.errors import DataError
from fusionkit.geometry import Frame, Grid
from fusionkit.sample import SceneObject


@dataclass(frozen=True, slots=True)
class PatchTargets:
    """Tokens on objects, of all crops of a batch.

    Shapes: on_object_CN bool; crop, token and object index lists, one entry M per token on an object; `cells_M4` the
    token's cell (x0, y0, x1, y1) in pixels of the picture.
    """

    on_object_CN: Tensor
    crops_M: Tensor
    tokens_M: Tensor
    objects_M: tuple[SceneObject, ...]
    cells_M4: Tensor


def patch_targets(
    grid: Grid, frame: Frame, batch: Mapping[str, Any], least_cover: float, device: torch.device | None = None
) -> PatchTargets:
    """Give each token of a grid (in its frame of the crop) the object that covers most of its cell, if that is at least `least_cover` of it.

    Raises DataError when the samples carry no objects.
    """
    crops = [
        (sample, region)
        for sample, regions in zip(batch["samples"], batch["regions"], strict=True)
        for region in regions
    ]
    if several := next((sample for sample in batch["samples"] if sample.more), None):
        raise DataError(f"{several.provenance}: patch objectives need samples with one picture, this one has more")
    if not any(sample.objects for sample, _ in crops):
        where = crops[0][0].provenance if crops else "batch"
        raise DataError(f"{where}: patch objectives need samples with annotated objects, and these have none")
    columns_N = torch.arange(grid.tokens) % grid.width
    rows_N = torch.arange(grid.tokens) // grid.width
    on_object, found_crop, found_token, found_object, found_cell = [], [], [], [], []
    for number, (sample, region) in enumerate(crops):
        step_x = (frame.x1 - frame.x0) * (region.x1 - region.x0) / grid.width
        step_y = (frame.y1 - frame.y0) * (region.y1 - region.y0) / grid.height
        x0_N = region.x0 + frame.x0 * (region.x1 - region.x0) + columns_N * step_x
        y0_N = region.y0 + frame.y0 * (region.y1 - region.y0) + rows_N * step_y
        boxes_O4 = torch.tensor([(o.box.x0, o.box.y0, o.box.x1, o.box.y1) for o in sample.objects]).reshape(-1, 4)
        wide_ON = (torch.minimum(x0_N + step_x, boxes_O4[:, 2:3]) - torch.maximum(x0_N, boxes_O4[:, 0:1])).clamp(min=0)
        high_ON = (torch.minimum(y0_N + step_y, boxes_O4[:, 3:4]) - torch.maximum(y0_N, boxes_O4[:, 1:2])).clamp(min=0)
        cover_ON = wide_ON * high_ON / (step_x * step_y)
        best_N, owner_N = cover_ON.max(0) if len(boxes_O4) else (torch.zeros(grid.tokens), torch.zeros(grid.tokens))
        on_N = best_N >= least_cover
        on_object.append(on_N)
        for token in on_N.nonzero()[:, 0].tolist():
            found_crop.append(number)
            found_token.append(token)
            found_object.append(sample.objects[int(owner_N[token])])
            found_cell.append((x0_N[token], y0_N[token], x0_N[token] + step_x, y0_N[token] + step_y))
    return PatchTargets(
        torch.stack(on_object).to(device),
        torch.tensor(found_crop, dtype=torch.long, device=device),
        torch.tensor(found_token, dtype=torch.long, device=device),
        tuple(found_object),
        torch.tensor(found_cell, device=device).reshape(-1, 4),
    )
