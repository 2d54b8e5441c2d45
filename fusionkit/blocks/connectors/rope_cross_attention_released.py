"""The cross-attention connector as the released CoME-VL code runs it, for parity with its weights."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from fusionkit.blocks.connectors.cross_attention import CrossAttention, open_gate
from fusionkit.blocks.connectors.specs import RopeCrossAttentionReleasedConfig, released_axis_width
from fusionkit.errors import ShapeError
from fusionkit.ops.rope import (
    Phases,
    grid_coordinates,
    pairwise_distance,
    rotate_interleaved,
    table_dtype,
    within_radius,
)
from fusionkit.ops.shapes import require_width
from fusionkit.ops.tables import KeepsTables
from fusionkit.ops.tokens import Tokens
from fusionkit.plugin import BlockSite


class RopeCrossAttentionReleased(KeepsTables):
    """Projected, normalised residual plus gated local attention.

    Shapes: query x_BND, memory x_BMC -> main x_BNE on the query's grid; with `bidirectional` also memory x_BME.

    Equation: S = LN(P_q V_q), M = LN(P_m V_m); V = S + tanh(γ) W_O softmax(R(W_Q S) R(W_K M)ᵀ / √K + b) W_V M.

    How it differs from the paper (Eq. 5-8), all kept: the residual is the normalised projection S, not V_q; keys
    beyond `radius` are masked, and a query with no key inside attends to all of them evenly; coordinates reach
    the border (corner-aligned); frequencies are learned and start at π/2 · [1, 1/frequency_range], almost inert;
    pairs are interleaved; a third of each head belongs to a time axis that is equal for query and memory, so those
    channels are not rotated (and its frequencies, which nothing depends on, are no parameters here).
    """

    def __init__(self, config: RopeCrossAttentionReleasedConfig, site: BlockSite) -> None:
        super().__init__()
        query, memory, width = site.tokens("query"), site.tokens("memory"), site.output.width
        self.address = site.address
        self.widths = (query.width, memory.width)
        self.project_query = nn.Linear(query.width, width)
        self.project_memory = nn.Linear(memory.width, width)
        self.norm_query = nn.LayerNorm(width)
        self.norm_memory = nn.LayerNorm(width)
        self.to_query = _Direction(config, width)
        self.to_memory = _Direction(config, width) if config.bidirectional else None

    def forward(self, query: Tokens, memory: Tokens) -> Tokens | dict[str, Tokens]:
        for name, tokens, width in (("query", query, self.widths[0]), ("memory", memory, self.widths[1])):
            require_width(tokens.x_BND, width, self.address)
            if tokens.copies != 1:
                raise ShapeError(f"{self.address or 'block'}: '{name}' is {tokens.spec}; expected one grid")
        asks = query.with_x(self.norm_query(self.project_query(_zero_invalid(query))))
        holds = memory.with_x(self.norm_memory(self.project_memory(_zero_invalid(memory))))
        places = self._places(query), self._places(memory)
        main: Tokens = self.to_query(asks, holds, *places)
        if self.to_memory is None:
            return main
        return {"main": main, "memory": self.to_memory(holds, asks, *reversed(places))}

    def _places(self, tokens: Tokens) -> Tensor:
        device, dtype = tokens.x_BND.device, table_dtype(tokens.x_BND)
        grid, frame = tokens.grid, tokens.frame
        key = (grid, frame, str(device), dtype)
        return self.table(key, lambda: grid_coordinates(grid, frame, "corner_aligned", device).to(dtype))


class _Direction(nn.Module):
    """One gated direction of attention, with its own frequencies."""

    parameter_roles: ClassVar[dict[str, str]] = {
        "gate": "gate",
        "frequencies_y": "vector",
        "frequencies_x": "vector",
        "distance_weight": "vector",
    }

    def __init__(self, config: RopeCrossAttentionReleasedConfig, width: int) -> None:
        super().__init__()
        head_width = width // config.heads
        self.gate_init = config.gate_init
        self.frequency_range = config.frequency_range
        self.radius = config.radius
        self.distance_decay = config.distance_decay
        self.attention = CrossAttention(
            width,
            width,
            heads=config.heads,
            kv_heads=config.heads,
            head_width=head_width,
            bias=True,
            rotate=rotate_interleaved,
        )
        pairs = released_axis_width(head_width) // 2
        self.still_pairs = head_width // 2 - 2 * pairs
        self.frequencies_y = nn.Parameter(torch.empty(pairs))
        self.frequencies_x = nn.Parameter(torch.empty(pairs))
        weight = nn.Parameter(torch.empty(config.heads)) if config.distance_decay else None
        self.register_parameter("distance_weight", weight)
        self.distance_weight: nn.Parameter | None
        self.gate = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set gate, frequencies and distance weights to their start; the layers inside have their own."""
        nn.init.constant_(self.gate, self.gate_init)
        for frequencies in (self.frequencies_y, self.frequencies_x):
            start = torch.linspace(0, -math.log(self.frequency_range), len(frequencies), device=frequencies.device)
            with torch.no_grad():
                frequencies.copy_(start.exp())
        if self.distance_weight is not None:
            nn.init.zeros_(self.distance_weight)

    def forward(self, asks: Tokens, holds: Tokens, places_N2: Tensor, places_M2: Tensor) -> Tokens:
        phases = self._phases(places_N2), self._phases(places_M2)
        bias = self._bias(places_N2, places_M2, holds)
        update_BND = self.attention(asks.x_BND, holds.x_BND, phases, bias)
        return asks.with_x(open_gate(asks.x_BND, self.gate, update_BND))

    def _phases(self, places_N2: Tensor) -> Phases:
        y_N1, x_N1 = places_N2.chunk(2, dim=-1)
        frequencies_y, frequencies_x = self.frequencies_y.to(y_N1.dtype), self.frequencies_x.to(x_N1.dtype)
        still = y_N1.new_zeros(len(y_N1), self.still_pairs)
        angle_NF = math.pi / 2 * torch.cat((y_N1 * frequencies_y, x_N1 * frequencies_x), dim=-1)
        return Phases.of(torch.cat((still, angle_NF), dim=-1), angle_NF.dtype)

    def _bias(self, places_N2: Tensor, places_M2: Tensor, holds: Tokens) -> Tensor | None:
        """What is added to the logits, broadcasting to [B, H, N, M]; None for nothing."""
        if self.radius is None and self.distance_weight is None and holds.valid_BN is None:
            return None
        floor = torch.finfo(_attention_dtype(holds.x_BND)).min / 2
        bias = places_N2.new_zeros(1, 1, len(places_N2), len(places_M2))
        if self.radius is not None:
            # A finite floor: a query with no key inside sinks evenly and so attends to all, as the released code does
            # (in float16, where the floor is nearer, not quite evenly).
            bias = bias.masked_fill(~within_radius(places_N2, places_M2, self.radius), floor)
        if self.distance_weight is not None and self.distance_decay is not None:
            closeness_NM = torch.exp(-self.distance_decay * pairwise_distance(places_N2, places_M2))
            bias = bias + self.distance_weight[:, None, None] * closeness_NM
        if holds.valid_BN is not None:
            # Below the floor, so that what lies outside the radius is still preferred to what is not there.
            bias = bias.masked_fill(~holds.valid_BN[:, None, None, :], 1.5 * floor)
        return bias


def _attention_dtype(x_BND: Tensor) -> torch.dtype:
    """The type the logits will have: what is finite in float32 may be infinite in autocast's float16."""
    kind = x_BND.device.type
    if kind != "meta" and x_BND.dtype == torch.float32 and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x_BND.dtype


def _zero_invalid(tokens: Tokens) -> Tensor:
    if tokens.valid_BN is None:
        return tokens.x_BND
    return torch.where(tokens.valid_BN[..., None], tokens.x_BND, tokens.x_BND.new_zeros(()))
