"""`patch_boxes`: a stream learns where the edges of things are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusionkit.blocks.objectives.patch_targets import patch_targets
from fusionkit.blocks.objectives.specs import PatchBoxesConfig
from fusionkit.plugin import BlockSite


class PatchBoxes(nn.Module):
    """One linear head per token: is there an object, and how far are its four edges from the cell's centre.

    Shapes: reads x_CND of one stream. Units: distances in cells. Losses: `objectness` (binary) and `edges` (smooth L1,
    quadratic below a quarter of a cell).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"streams"})

    def __init__(self, config: PatchBoxesConfig, site: BlockSite) -> None:
        super().__init__()
        self.config = config
        self.streams = (config.stream,)
        self.spec = site.tokens(config.stream)
        self.head = nn.Linear(self.spec.width, 5)

    def forward(self, outputs: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        tokens = outputs.streams[self.config.stream]
        truth = patch_targets(tokens.grid, tokens.frame, batch, self.config.least_cover, tokens.x_BND.device)
        scores_CN5 = self.head(tokens.x_BND)
        objectness = F.binary_cross_entropy_with_logits(scores_CN5[..., 0], truth.on_object_CN.to(scores_CN5.dtype))
        boxes = [(item.box.x0, item.box.y0, item.box.x1, item.box.y1) for item in truth.objects_M]
        boxes_M4 = torch.tensor(boxes, device=scores_CN5.device).reshape(-1, 4)
        size_M2 = truth.cells_M4[:, 2:] - truth.cells_M4[:, :2]
        centre_M2 = (truth.cells_M4[:, :2] + truth.cells_M4[:, 2:]) / 2
        wanted_M4 = torch.cat([centre_M2 - boxes_M4[:, :2], boxes_M4[:, 2:] - centre_M2], dim=1) / size_M2.repeat(1, 2)
        found_M4 = scores_CN5[truth.crops_M, truth.tokens_M, 1:]
        summed = F.smooth_l1_loss(found_M4, wanted_M4.to(found_M4.dtype), beta=0.25, reduction="sum")
        edges = summed / max(1, found_M4.numel())  # the mean, and 0 where that of nothing would be NaN
        return {"objectness": self.config.weight * objectness, "edges": self.config.weight * edges}

    def items_in(self, batch: Mapping[str, Any]) -> dict[str, float]:
        """What the losses are means over: all tokens, and the tokens on objects."""
        truth = patch_targets(self.spec.grid, self.spec.frame, batch, self.config.least_cover)
        return {"objectness": float(truth.on_object_CN.numel()), "edges": float(len(truth.objects_M))}
