"""Tokens of several inputs in turn."""

from __future__ import annotations

import torch
from torch import nn

from fusionkit.blocks.connectors.joining import require_one_grid, validity
from fusionkit.blocks.connectors.specs import InterleaveConfig
from fusionkit.ops.tokens import Tokens
from fusionkit.plugin import BlockSite, input_names


class Interleave(nn.Module):
    """Neighbours in the sequence look at one place.

    Shapes: k inputs x_BND -> [B, k N, D].

    Equation: y_{kn + i} = x^i_n.
    """

    def __init__(self, config: InterleaveConfig, site: BlockSite) -> None:
        super().__init__()
        self.address = site.address
        self.names = tuple(input_names(config))
        self.widths = tuple(site.tokens(name).width for name in self.names)

    def forward(self, **inputs: Tokens) -> Tokens:
        parts = [inputs[name] for name in self.names]
        first = require_one_grid(parts, self.widths, self.address)
        valid = validity(parts)
        in_turn = None if valid is None else torch.stack(valid, dim=2).flatten(1, 2)
        x_BND = torch.stack([part.x_BND for part in parts], dim=2).flatten(1, 2)
        return Tokens(x_BND, first.grid, first.frame, in_turn, len(parts), interleaved=True)
