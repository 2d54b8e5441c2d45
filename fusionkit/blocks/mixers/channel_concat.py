"""Channel concatenation: all layers side by side (Molmo, Granite)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fusionkit.blocks.mixers.parts import stack_of
from fusionkit.blocks.mixers.specs import ChannelConcatConfig
from fusionkit.plugin import BlockSite, ShapeError


class ChannelConcatMixer(nn.Module):
    """V = [z_1; ...; z_L], lowest layer first. No parameters.

    Shapes: L tensors [B, N, D] -> [B, N, L D]. Not streamed: the output is all the layers, so nothing is saved.
    """

    def __init__(self, config: ChannelConcatConfig, site: BlockSite) -> None:
        super().__init__()
        stack = stack_of(site)
        self.address = site.address
        self.layers, self.width_in = stack.depth, stack.width

    def forward(self, layers: Sequence[Tensor]) -> Tensor:
        found = [x_BND.shape[-1] for x_BND in layers]
        if found != [self.width_in] * self.layers:
            name = self.address or type(self).__name__
            raise ShapeError(f"{name}: expected {self.layers} layers of width {self.width_in}, got widths {found}")
        return torch.cat(list(layers), dim=-1)
