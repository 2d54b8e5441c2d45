"""A fixed two-dimensional sine and cosine code of where a token stands."""

from __future__ import annotations

import torch
from torch import nn

from fusionkit.blocks.adapters.specs import SincosPositionConfig
from fusionkit.errors import ShapeError
from fusionkit.ops.rope import Phases, axis_wavelengths, grid_angles, grid_coordinates, table_dtype
from fusionkit.ops.shapes import require_width
from fusionkit.ops.tokens import Tokens
from fusionkit.plugin import BlockSite


class SincosPosition(nn.Module):
    """Adds the code of each cell's centre; nothing is learned and nothing stored.

    Shapes: x_BND -> x_BND. Channels: sines of y then of x, cosines of y then of x, D/4 each.

    Equation: y = x + scale (sin θ ⊕ cos θ), θ = 2π (y/λ ⊕ x/λ), λ from 2 cells to 2 sides in equal ratios.
    """

    def __init__(self, config: SincosPositionConfig, site: BlockSite) -> None:
        super().__init__()
        self.address = site.address
        self.width = site.tokens().width
        self.scale = config.scale

    def forward(self, tokens: Tokens) -> Tokens:
        require_width(tokens.x_BND, self.width, self.address)
        if tokens.copies != 1:
            raise ShapeError(f"{self.address or 'sincos_position'}: expected one grid, got {tokens.spec}")
        x_BND = tokens.x_BND
        wavelengths = axis_wavelengths([(tokens.grid, tokens.frame)], 2.0, 2.0, self.width // 4, x_BND.device)
        places_N2 = grid_coordinates(tokens.grid, tokens.frame, "cell_centres", x_BND.device)
        phases = Phases.of(grid_angles(places_N2, wavelengths), table_dtype(x_BND))
        code_ND = self.scale * torch.cat((phases.sin, phases.cos), dim=-1)
        return tokens.with_x((x_BND + code_ND).to(x_BND.dtype))
