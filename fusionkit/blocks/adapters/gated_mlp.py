"""LayerNorm, a gelu-gated MLP and a residual: what the released CoME-VL puts on its spatial stream."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fusionkit.blocks.adapters.specs import GatedMlpConfig
from fusionkit.ops.shapes import require_width
from fusionkit.ops.tokens import Tokens
from fusionkit.plugin import BlockSite


class GatedMlp(nn.Module):
    """A GEGLU block per token.

    Shapes: x_BND -> y_BNE on the same grid; inner width expansion * D.

    Equation: a, b = split(W_1 LN(x) + b_1); y = x + W_2 (a * gelu(b)) + b_2 (LN of the update if `final_norm`).
    """

    def __init__(self, config: GatedMlpConfig, site: BlockSite) -> None:
        super().__init__()
        width, out = site.tokens().width, site.output.width
        inner = config.expansion * width
        self.address = site.address
        self.width = width
        self.residual = config.residual
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 2 * inner)
        self.contract = nn.Linear(inner, out)
        self.final_norm = nn.LayerNorm(out) if config.final_norm else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Tokens) -> Tokens:
        require_width(tokens.x_BND, self.width, self.address)
        a, b = self.expand(self.norm(tokens.x_BND)).chunk(2, dim=-1)
        update: Tensor = self.final_norm(self.contract(self.dropout(a * F.gelu(b))))
        return tokens.with_x(tokens.x_BND + update if self.residual else update)
