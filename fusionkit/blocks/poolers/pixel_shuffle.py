"""Pixel shuffle: every window becomes one token with all its channels."""

from __future__ import annotations

import torch
from torch import nn

from fusionkit.blocks.poolers.specs import PixelShuffleConfig, pooled_tokens
from fusionkit.ops.tokens import Tokens
from fusionkit.ops.windows import pooled_coverage, split_windows
from fusionkit.plugin import BlockSite


class PixelShuffle(nn.Module):
    """Channels of a window side by side.

    Shapes: x_BND -> x_BWC with C = window rows * window columns * D, in the config's `order`. Invalid tokens count
    as zeros; a window without a real token is marked invalid.
    """

    def __init__(self, config: PixelShuffleConfig, site: BlockSite) -> None:
        super().__init__()
        self.window = config.window
        self.channel_first = config.order == "channel_row_column"

    def forward(self, tokens: Tokens) -> Tokens:
        pooled = pooled_tokens(tokens.spec, self.window, "error")
        x_BND, some_BW = tokens.x_BND, None
        if tokens.valid_BN is not None:
            real_BN1 = tokens.valid_BN[..., None]
            x_BND = torch.where(real_BN1, x_BND, x_BND.new_zeros(()))
            some_BW = split_windows(real_BN1, tokens.grid, self.window).any(2)[..., 0]
        x_BWSD = split_windows(x_BND, tokens.grid, self.window)
        if self.channel_first:
            x_BWSD = x_BWSD.transpose(2, 3)
        coverage_BW = pooled_coverage(tokens, self.window)
        return Tokens(x_BWSD.flatten(2), pooled.grid, pooled.frame, some_BW, coverage_BN=coverage_BW)
