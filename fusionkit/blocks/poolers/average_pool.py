"""Average pooling over windows of the grid."""

from __future__ import annotations

import torch
from torch import nn

from fusionkit.blocks.poolers.specs import AveragePoolConfig, pooled_tokens
from fusionkit.ops.tokens import Tokens
from fusionkit.ops.windows import pooled_coverage, split_windows
from fusionkit.plugin import BlockSite


class AveragePool(nn.Module):
    """Mean of every window's real tokens.

    Shapes: x_BND -> x_BWD, W windows. A window without a real token is 0 and marked invalid.

    Equation: y_w = mean_{n in w} x_n.
    """

    def __init__(self, config: AveragePoolConfig, site: BlockSite) -> None:
        super().__init__()
        self.window = config.window
        self.uneven = config.uneven

    def forward(self, tokens: Tokens) -> Tokens:
        pooled = pooled_tokens(tokens.spec, self.window, self.uneven)
        valid_BN = tokens.valid_BN
        if valid_BN is None and tokens.grid.tokens == pooled.tokens * self.window[0] * self.window[1]:
            x_BWD = split_windows(tokens.x_BND, tokens.grid, self.window).mean(2)
            return Tokens(x_BWD, pooled.grid, pooled.frame, coverage_BN=pooled_coverage(tokens, self.window))
        real_BN1 = (tokens.x_BND.new_ones(tokens.x_BND.shape[:2], dtype=torch.bool) if valid_BN is None else valid_BN)[
            ..., None
        ]
        # where, not a product: an invalid token may hold anything, NaN included.
        x_BND = torch.where(real_BN1, tokens.x_BND, tokens.x_BND.new_zeros(()))
        count_BW1 = split_windows(real_BN1, tokens.grid, self.window).sum(2)
        total_BWD = split_windows(x_BND, tokens.grid, self.window).sum(2)
        x_BWD = total_BWD / count_BW1.clamp(min=1).to(total_BWD.dtype)
        some_BW = None if valid_BN is None else count_BW1[..., 0] > 0
        return Tokens(x_BWD, pooled.grid, pooled.frame, some_BW, coverage_BN=pooled_coverage(tokens, self.window))
