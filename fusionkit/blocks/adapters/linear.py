"""One linear map per token."""

from __future__ import annotations

from torch import nn

from fusionkit.blocks.adapters.specs import LinearConfig
from fusionkit.ops.shapes import require_width
from fusionkit.ops.tokens import Tokens
from fusionkit.plugin import BlockSite


class Linear(nn.Module):
    """The plainest projector.

    Shapes: x_BND -> y_BNE on the same grid.

    Equation: y = W x + b.
    """

    def __init__(self, config: LinearConfig, site: BlockSite) -> None:
        super().__init__()
        self.address = site.address
        self.linear = nn.Linear(site.tokens().width, site.output.width, bias=config.bias)

    def forward(self, tokens: Tokens) -> Tokens:
        require_width(tokens.x_BND, self.linear.in_features, self.address)
        return tokens.with_x(self.linear(tokens.x_BND))
