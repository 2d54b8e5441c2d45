"""Inputs side by side on the channel or the token axis."""

from __future__ import annotations

import torch
from torch import nn

from fusionkit.blocks.connectors.joining import require_one_grid, validity
from fusionkit.blocks.connectors.specs import ConcatConfig
from fusionkit.ops.tokens import Tokens
from fusionkit.plugin import BlockSite, input_names


class Concat(nn.Module):
    """No parameters, no loss of information.

    Shapes: k inputs x_BND -> channel: [B, N, sum of D]; token: [B, sum of N, D], one grid after the other.

    A token joined from channels is valid where all its parts are.
    """

    def __init__(self, config: ConcatConfig, site: BlockSite) -> None:
        super().__init__()
        self.address = site.address
        self.names = tuple(input_names(config))
        self.widths = tuple(site.tokens(name).width for name in self.names)
        self.axis = config.axis

    def forward(self, **inputs: Tokens) -> Tokens:
        parts = [inputs[name] for name in self.names]
        first = require_one_grid(parts, self.widths, self.address)
        vectors, valid = [part.x_BND for part in parts], validity(parts)
        if self.axis == "channel":
            together = None if valid is None else torch.stack(valid).all(0)
            return first._replace(x_BND=torch.cat(vectors, dim=-1), valid_BN=together)
        in_a_row = None if valid is None else torch.cat(valid, dim=1)
        copies = sum(part.copies for part in parts)
        return Tokens(torch.cat(vectors, dim=1), first.grid, first.frame, in_a_row, copies)
