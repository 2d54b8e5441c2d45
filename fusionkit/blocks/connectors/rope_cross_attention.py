"""Rotary gated cross-attention (RGCA) between two token grids, as the paper writes it."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from fusionkit.blocks.connectors.cross_attention import CrossAttention, open_gate
from fusionkit.blocks.connectors.specs import Rope, RopeCrossAttentionConfig
from fusionkit.errors import ShapeError
from fusionkit.geometry import Frame, Grid
from fusionkit.ops.rope import (
    Phases,
    axis_wavelengths,
    grid_angles,
    grid_coordinates,
    rotate_half_split,
    table_dtype,
    within_radius,
)
from fusionkit.ops.shapes import require_width
from fusionkit.ops.tables import KeepsTables
from fusionkit.ops.tokens import Tokens
from fusionkit.plugin import BlockSite

View = tuple[Grid, Frame]


class RopeCrossAttention(KeepsTables):
    """Query tokens look at the memory's tokens near and far; a gate that starts shut lets the answer in.

    Shapes: query x_BND, memory x_BMC (any grid, any width) -> x_BND on the query's grid.

    Equation (paper Eq. 5-8): Q = RoPE(W_Q LN V_q), K = RoPE(W_K LN V_m), V = W_V LN V_m,
    V_fused = V_q + tanh(γ) W_O softmax(Q Kᵀ / √K) V. Named differences: the output projection W_O, and two rotary
    axes (y, x): the paper's further axes are equal for query and memory of one crop and cancel.

    Units: coordinates and radius in sides of the crop; wavelengths from `shortest` cells of the finer grid to
    `longest` sides, in equal ratios. A query with no memory inside the radius is returned unchanged.
    """

    parameter_roles: ClassVar[dict[str, str]] = {"gate": "gate"}

    def __init__(self, config: RopeCrossAttentionConfig, site: BlockSite) -> None:
        super().__init__()
        query, memory = site.tokens("query"), site.tokens("memory")
        self.address = site.address
        self.widths = (query.width, memory.width)
        self.rope: Rope | None = config.rope
        self.radius = config.radius
        self.gate_init = config.gate_init
        self.norm_query = nn.LayerNorm(query.width)
        self.norm_memory = nn.LayerNorm(memory.width)
        self.attention = CrossAttention(
            query.width,
            memory.width,
            heads=config.heads,
            kv_heads=config.kv_heads or config.heads,
            head_width=config.head_width or query.width // config.heads,
            bias=config.bias,
            rotate=rotate_half_split,
        )
        self.gate = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the gate to its start; the layers inside have their own."""
        nn.init.constant_(self.gate, self.gate_init)

    def forward(self, query: Tokens, memory: Tokens) -> Tokens:
        require_width(query.x_BND, self.widths[0], self.address)
        require_width(memory.x_BND, self.widths[1], self.address)
        memory_BMC = memory.x_BND
        if memory.valid_BN is not None:
            # An invalid token may hold anything; 0 times NaN would still be NaN.
            memory_BMC = torch.where(memory.valid_BN[..., None], memory_BMC, memory_BMC.new_zeros(()))
        update_BND = self.attention(
            self.norm_query(query.x_BND),
            self.norm_memory(memory_BMC),
            self._phases(query, memory),
            self._mask(query, memory),
        )
        return query.with_x(open_gate(query.x_BND, self.gate, update_BND))

    def _mask(self, query: Tokens, memory: Tokens) -> Tensor | None:
        """Which memory a query may attend to, [B or 1, 1, N or 1, M]; None for all."""
        valid_B11M = None if memory.valid_BN is None else memory.valid_BN[:, None, None, :]
        if self.radius is None:
            return valid_B11M if valid_B11M is None else valid_B11M.expand(-1, 1, query.x_BND.shape[1], -1)
        near_NM = self._near(query, memory, self.radius)
        return near_NM[None, None] if valid_B11M is None else near_NM & valid_B11M

    def _near(self, query: Tokens, memory: Tokens, radius: float) -> Tensor:
        views = self._views(query, memory)
        device = query.x_BND.device

        def make() -> Tensor:
            return within_radius(self._places(views[0], device), self._places(views[1], device), radius)

        return self.table(("near", views, str(device)), make)

    def _phases(self, query: Tokens, memory: Tokens) -> tuple[Phases, Phases] | None:
        if self.rope is None:
            return None
        rope, views = self.rope, self._views(query, memory)
        device, dtype = query.x_BND.device, table_dtype(query.x_BND)
        count = self.attention.head_width // 4

        def make() -> tuple[Phases, Phases]:
            wavelengths = axis_wavelengths(views, rope.shortest, rope.longest, count, device)
            of_query, of_memory = (grid_angles(self._places(view, device), wavelengths) for view in views)
            return Phases.of(of_query, dtype), Phases.of(of_memory, dtype)

        return self.table(("phases", views, str(device), dtype), make)

    def _places(self, view: View, device: torch.device) -> Tensor:
        return grid_coordinates(*view, self.rope.coordinates if self.rope else "cell_centres", device)

    def _views(self, query: Tokens, memory: Tokens) -> tuple[View, View]:
        for name, tokens in (("query", query), ("memory", memory)):
            if tokens.copies != 1:
                raise ShapeError(
                    f"{self.address or 'rope_cross_attention'}: '{name}' is {tokens.spec}; expected one grid"
                )
        return (query.grid, query.frame), (memory.grid, memory.frame)
