"""Multilayer perceptrons per token: the projectors of LLaVA (gelu) and Molmo (swiglu)."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from fusionkit.blocks.adapters.specs import MlpConfig, mlp_widths
from fusionkit.ops.shapes import require_width
from fusionkit.ops.tokens import Tokens
from fusionkit.plugin import BlockSite


def make_mlp(config: MlpConfig, site: BlockSite) -> nn.Module:
    """The module for the configured activation; each has its own parameters."""
    return SwigluMlp(config, site) if config.activation == "swiglu" else GeluMlp(config, site)


class GeluMlp(nn.Module):
    """Linear layers with exact gelu between them.

    Shapes: x_BND -> y_BNE on the same grid.

    Equation (depth 2): y = W_2 gelu(W_1 x + b_1) + b_2, with x = LN(x) first if `norm`.
    """

    def __init__(self, config: MlpConfig, site: BlockSite) -> None:
        super().__init__()
        width, out = site.tokens().width, site.output.width
        self.address = site.address
        self.width = width
        self.norm = nn.LayerNorm(width) if config.norm else nn.Identity()
        widths = mlp_widths(width, config.hidden or out, out, config.depth)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, tokens: Tokens) -> Tokens:
        require_width(tokens.x_BND, self.width, self.address)
        x: Tensor = self.norm(tokens.x_BND)
        for index, layer in enumerate(self.layers):
            x = layer(F.gelu(x) if index else x)
        return tokens.with_x(x)


class SwigluMlp(nn.Module):
    """One gated block without biases.

    Shapes: x_BND -> y_BNE on the same grid.

    Equation: y = W_2 (silu(W_1 x) * W_3 x); W_1 is `gate`, W_3 `up`, W_2 `down`; x = LN(x) first if `norm`.
    """

    def __init__(self, config: MlpConfig, site: BlockSite) -> None:
        super().__init__()
        width, out = site.tokens().width, site.output.width
        hidden = config.hidden or out
        self.address = site.address
        self.width = width
        self.norm = nn.LayerNorm(width) if config.norm else nn.Identity()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, out, bias=False)

    def forward(self, tokens: Tokens) -> Tokens:
        require_width(tokens.x_BND, self.width, self.address)
        x: Tensor = self.norm(tokens.x_BND)
        return tokens.with_x(self.down(F.silu(self.gate(x)) * self.up(x)))
