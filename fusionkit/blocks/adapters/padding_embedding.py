"""Two learned vectors that tell padding from picture (Molmo, and the released CoME-VL on its semantic stream)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from fusionkit.blocks.adapters.specs import PaddingEmbeddingConfig
from fusionkit.ops.shapes import require_width
from fusionkit.ops.tokens import Tokens
from fusionkit.plugin import BlockSite


class PaddingEmbedding(nn.Module):
    """Adds one vector to tokens of padding, another to tokens on the picture's edge.

    Shapes: x_BND -> x_BND. Parameter `embedding` [2, D] (`pad_embed` of the released checkpoints): 0 padding, 1 edge.

    Equation: y = x + e_0 if c = 0, x + e_1 if 0 < c < 1, x if c = 1, with c the token's coverage.
    Deviation from the released code: coverage is never negative here; there -1, its filler, counted as an edge.
    """

    parameter_roles: ClassVar[dict[str, str]] = {"embedding": "embedding"}

    def __init__(self, config: PaddingEmbeddingConfig, site: BlockSite) -> None:
        super().__init__()
        self.address = site.address
        self.std = config.std
        self.embedding = nn.Parameter(torch.empty(2, site.tokens().width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw both vectors anew."""
        nn.init.normal_(self.embedding, std=self.std)

    def forward(self, tokens: Tokens) -> Tokens:
        x_BND = tokens.x_BND
        require_width(x_BND, self.embedding.shape[1], self.address)
        coverage_BN = tokens.coverage()
        padding_BN, edge_BN = coverage_BN <= 0, (coverage_BN > 0) & (coverage_BN < 1)
        update_BND: Tensor = torch.stack((padding_BN, edge_BN), dim=-1).to(self.embedding.dtype) @ self.embedding
        return tokens.with_x(x_BND + update_BND.to(x_BND.dtype))
