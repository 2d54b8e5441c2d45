"""Peer of `connectors/rope_cross_attention_released`: the released code's order of work, written out again.

Rotation angles, distances and the mask are made at every call, for every crop and head, and a third of each head is
turned by the crop's number, which cancels.
"""

from __future__ import annotations

import copy
import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusionkit.bench.peers.peer import Peer, UnsuitableError
from fusionkit.blocks.connectors.rope_cross_attention_released import RopeCrossAttentionReleased
from fusionkit.blocks.connectors.specs import RopeCrossAttentionReleasedConfig
from fusionkit.ops.tokens import Tokens


class ReleasedConnector(nn.Module):
    """V = S + tanh(γ) W_O softmax(R(W_Q S) R(W_K M)ᵀ / √K + b) W_V M, with S = LN(P_q V_q) and M = LN(P_m V_m)."""

    def __init__(self, block: RopeCrossAttentionReleased, config: RopeCrossAttentionReleasedConfig) -> None:
        super().__init__()
        if config.bidirectional or config.distance_decay is not None:
            raise UnsuitableError("the released formula covers one direction without distance weights")
        own = copy.deepcopy(block)
        self.project_query, self.project_memory = own.project_query, own.project_memory
        self.norm_query, self.norm_memory = own.norm_query, own.norm_memory
        way = own.to_query
        self.attention = way.attention  # for its four layers; it is never called
        self.gate, self.frequencies_y, self.frequencies_x = way.gate, way.frequencies_y, way.frequencies_x
        self.heads, self.radius, self.still = config.heads, config.radius, way.still_pairs

    def forward(self, query: Tokens, memory: Tokens) -> Tokens:
        asks_BND = self.norm_query(self.project_query(query.x_BND))
        holds_BMD = self.norm_memory(self.project_memory(memory.x_BND))
        places_BN3, places_BM3 = _places(query), _places(memory)
        q_BHNK = self._turn(self._heads(self.attention.query(asks_BND)), places_BN3)
        k_BHMK = self._turn(self._heads(self.attention.key(holds_BMD)), places_BM3)
        v_BHMK = self._heads(self.attention.value(holds_BMD))
        mask = None
        if self.radius is not None:
            far_BNM = torch.cdist(places_BN3[..., 1:].float(), places_BM3[..., 1:].float()) > self.radius * (1 + 1e-6)
            zeros_BHNM = q_BHNK.new_zeros(len(far_BNM), self.heads, *far_BNM.shape[1:])
            mask = zeros_BHNM.masked_fill(far_BNM[:, None], torch.finfo(q_BHNK.dtype).min / 2)
        update_BHNK = F.scaled_dot_product_attention(q_BHNK, k_BHMK, v_BHMK, attn_mask=mask)
        update_BND: Tensor = self.attention.output(update_BHNK.transpose(1, 2).flatten(2))
        return query.with_x((asks_BND + torch.tanh(self.gate) * update_BND).to(query.x_BND.dtype))

    def _heads(self, x_BND: Tensor) -> Tensor:
        batch, tokens, width = x_BND.shape
        return x_BND.reshape(batch, tokens, self.heads, width // self.heads).transpose(1, 2)

    def _turn(self, x_BHNK: Tensor, places_BN3: Tensor) -> Tensor:
        """Neighbouring channels turned by π/2 · place · frequency: by crop, then y, then x."""
        frequencies_t = torch.ones(self.still, device=x_BHNK.device)
        frequencies = (frequencies_t, self.frequencies_y, self.frequencies_x)
        angles = [places_BN3[..., axis, None] * each for axis, each in enumerate(frequencies)]
        angle_BNK = (math.pi / 2 * torch.cat(angles, dim=-1)).repeat_interleave(2, dim=-1)
        cos_B1NK, sin_B1NK = angle_BNK.cos()[:, None], angle_BNK.sin()[:, None]
        even, odd = x_BHNK[..., 0::2], x_BHNK[..., 1::2]
        crossed = torch.stack((-odd, even), dim=-1).flatten(-2)
        return (x_BHNK * cos_B1NK + crossed * sin_B1NK).to(x_BHNK.dtype)


def _places(tokens: Tokens) -> Tensor:
    """(crop, y, x) of every token, [B, N, 3]; y and x reach the border."""
    grid, frame, device = tokens.grid, tokens.frame, tokens.x_BND.device
    ys = torch.linspace(frame.y0, frame.y1, grid.height, device=device)
    xs = torch.linspace(frame.x0, frame.x1, grid.width, device=device)
    y_HW, x_HW = torch.meshgrid(ys, xs, indexing="ij")
    place_N2 = torch.stack((y_HW.flatten(), x_HW.flatten()), dim=-1)
    crops = len(tokens.x_BND)
    t_BN1 = torch.arange(crops, device=device)[:, None, None].expand(crops, len(place_N2), 1)
    return torch.cat((t_BN1.to(place_N2.dtype), place_N2.expand(crops, -1, -1)), dim=-1)


RELEASED_CONNECTOR = Peer(
    "released_connector",
    "connectors/rope_cross_attention_released",
    "the released code's order of work: angles, distances and mask at every call, for every crop and head",
    lambda block, config: ReleasedConnector(
        cast(RopeCrossAttentionReleased, block), cast(RopeCrossAttentionReleasedConfig, config)
    ),
)
