"""Peer of `connectors/rope_cross_attention`: equations 5-8 line by line, tables and logits made at every call."""

from __future__ import annotations

import copy
import math
from typing import cast

import torch
from torch import Tensor, nn

from fusionkit.bench.peers.peer import Peer, UnsuitableError
from fusionkit.blocks.connectors.rope_cross_attention import RopeCrossAttention
from fusionkit.blocks.connectors.specs import Rope, RopeCrossAttentionConfig
from fusionkit.ops.tokens import Tokens


class CrossAttentionFormula(nn.Module):
    """V_q + tanh(γ) W_O softmax(RoPE(W_Q LN V_q) RoPE(W_K LN V_m)ᵀ / √K) W_V LN V_m, logits [B, H, N, M] in memory."""

    def __init__(self, block: RopeCrossAttention, config: RopeCrossAttentionConfig) -> None:
        super().__init__()
        if config.radius is not None:
            raise UnsuitableError("the formula has no radius")
        self.rope = config.rope
        self.heads, self.head_width = config.heads, block.attention.head_width
        self.repeat = config.heads // (config.kv_heads or config.heads)
        self.norm_query, self.norm_memory = copy.deepcopy(block.norm_query), copy.deepcopy(block.norm_memory)
        self.attention = copy.deepcopy(block.attention)  # for its four layers; it is never called
        self.gate = nn.Parameter(block.gate.detach().clone())

    def forward(self, query: Tokens, memory: Tokens) -> Tokens:
        normed_BND, normed_BMC = self.norm_query(query.x_BND), self.norm_memory(memory.x_BND)
        q_BHNK = self._heads(self.attention.query(normed_BND))
        k_BHMK = self._heads(self.attention.key(normed_BMC)).repeat_interleave(self.repeat, 1)
        v_BHMK = self._heads(self.attention.value(normed_BMC)).repeat_interleave(self.repeat, 1)
        if self.rope is not None:
            of_query, of_memory = angles(query, memory, self.rope, self.head_width)
            q_BHNK, k_BHMK = _turn(q_BHNK, of_query), _turn(k_BHMK, of_memory)
        share_BHNM = (q_BHNK @ k_BHMK.mT / math.sqrt(self.head_width)).softmax(-1)
        update_BND: Tensor = self.attention.output((share_BHNM @ v_BHMK).transpose(1, 2).flatten(2))
        return query.with_x((query.x_BND + torch.tanh(self.gate) * update_BND).to(query.x_BND.dtype))

    def _heads(self, x_BNA: Tensor) -> Tensor:
        batch, tokens, width = x_BNA.shape
        return x_BNA.reshape(batch, tokens, width // self.head_width, self.head_width).transpose(1, 2)


def _cells(tokens: Tokens) -> tuple[float, float]:
    """Height and width of a cell, in sides of the crop."""
    frame, grid = tokens.frame, tokens.grid
    return (frame.y1 - frame.y0) / grid.height, (frame.x1 - frame.x0) / grid.width


def angles(query: Tokens, memory: Tokens, rope: Rope, head_width: int) -> tuple[Tensor, Tensor]:
    """2π (place / wavelength) of both grids, [tokens, K/2]: y for the first half of the phases, x for the second."""
    count = head_width // 4
    if rope.coordinates != "cell_centres" or count < 2:
        raise UnsuitableError("the formula covers cell centres and heads of at least 8")
    cells = [_cells(tokens) for tokens in (query, memory)]
    found = []
    for tokens in (query, memory):
        device = tokens.x_BND.device
        places = torch.tensor(list(tokens.frame.cell_centres(tokens.grid)), device=device)
        of_axes = []
        for axis in (0, 1):
            shortest = rope.shortest * min(cell[axis] for cell in cells)
            ratio = rope.longest / shortest
            wavelengths = torch.tensor([shortest * ratio ** (j / (count - 1)) for j in range(count)], device=device)
            of_axes.append(2 * math.pi * places[:, axis, None] / wavelengths)
        found.append(torch.cat(of_axes, dim=-1))
    return found[0], found[1]


def _turn(x_BHNK: Tensor, angle_NF: Tensor) -> Tensor:
    """Channels j and j + K/2 turned by angle j."""
    cos, sin = angle_NF.cos(), angle_NF.sin()
    a, b = x_BHNK.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x_BHNK.dtype)


CROSS_ATTENTION_FORMULA = Peer(
    "formula",
    "connectors/rope_cross_attention",
    "the paper's equations line by line: tables at every call, logits in memory",
    lambda block, config: CrossAttentionFormula(
        cast(RopeCrossAttention, block), cast(RopeCrossAttentionConfig, config)
    ),
)
