"""Peers of `connectors/rope_cross_attention` that fuse in another way, at the same number of tokens."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusionkit.bench.peers.cross_attention_libraries import BLOCK, require_plain, unrotated
from fusionkit.bench.peers.peer import Peer, never
from fusionkit.blocks.connectors.rope_cross_attention import RopeCrossAttention
from fusionkit.blocks.connectors.specs import RopeCrossAttentionConfig
from fusionkit.blocks.injectors.gated_cross_attention import GatedCrossAttention
from fusionkit.blocks.injectors.specs import GatedCrossAttentionConfig, plan_gated_cross_attention
from fusionkit.geometry import Grid, TokenSpec
from fusionkit.ops.placement import Placement
from fusionkit.ops.tokens import Tokens
from fusionkit.plugin import BlockSite


class GatedLayer(nn.Module):
    """One layer of our `injectors/gated_cross_attention` with the query's tokens as its text and the block's weights.

    An image token stands before them, as in a prompt; keys and values are made in the same call.
    """

    def __init__(self, block: RopeCrossAttention, config: RopeCrossAttentionConfig) -> None:
        super().__init__()
        require_plain(config, "injectors/gated_cross_attention")
        own = block.attention
        given = GatedCrossAttentionConfig(
            layers=(1,), heads=config.heads, kv_heads=config.kv_heads, head_width=own.head_width
        )
        memory = TokenSpec(Grid(1, 1), own.key.in_features)
        planned = plan_gated_cross_attention(given, {"input": memory}, own.query.in_features)
        self.injector = GatedCrossAttention(given, BlockSite(inputs={"input": memory}, plan=planned))
        layer = self.injector.blocks["1"]
        with torch.no_grad():
            for mine, theirs in (
                (self.injector.norm_memory, block.norm_memory),
                (layer.norm, block.norm_query),
                *((getattr(layer, name), getattr(own, name)) for name in ("query", "key", "value", "output")),
            ):
                cast(nn.Module, mine).load_state_dict(theirs.state_dict())
            cast(nn.Parameter, layer.gate).copy_(block.gate)
        self.to(own.query.weight.device)

    def forward(self, query: Tokens, memory: Tokens) -> Tokens:
        rows, length = query.x_BND.shape[:2]
        image_BT = torch.zeros(rows, 1 + length, dtype=torch.bool, device=query.x_BND.device)
        image_BT[:, 0] = True
        firsts_B = torch.arange(rows, device=image_BT.device) * memory.x_BND.shape[1]
        state = self.injector.prepare(memory, Placement.of(image_BT, firsts_B, memory.x_BND.shape[1]))
        hidden_BTD = F.pad(query.x_BND, (0, 0, 1, 0))
        return query.with_x(self.injector(hidden_BTD, state, 1)[:, 1:])


class ConcatLinear(nn.Module):
    """V = W [V_q ; V_m brought to the query's grid]: joined on the channel axis, so that the tokens stay as many."""

    def __init__(self, block: RopeCrossAttention) -> None:
        super().__init__()
        own = block.attention
        width = own.query.in_features
        self.project = nn.Linear(width + own.key.in_features, width, device=own.query.weight.device)

    def forward(self, query: Tokens, memory: Tokens) -> Tokens:
        there, here = memory.grid, query.grid
        x_BCHW = memory.x_BND.mT.unflatten(-1, (there.height, there.width))
        if there != here:
            x_BCHW = F.interpolate(x_BCHW, (here.height, here.width), mode="bilinear", align_corners=False)
        joined_BNC: Tensor = torch.cat((query.x_BND, x_BCHW.flatten(2).mT), dim=-1)
        return query.with_x(self.project(joined_BNC).to(query.x_BND.dtype))


GATED_LAYER = Peer(
    "gated_cross_attention",
    BLOCK,
    "one layer of our gated_cross_attention, the query's tokens as its text; the same function with `rope=null`",
    lambda block, config: GatedLayer(cast(RopeCrossAttention, block), cast(RopeCrossAttentionConfig, config)),
    same=unrotated,
)
CONCAT_LINEAR = Peer(
    "concat_linear",
    BLOCK,
    "the memory brought to the query's grid, joined on the channel axis, and a linear map: another function",
    lambda block, config: ConcatLinear(cast(RopeCrossAttention, block)),
    same=never,
)
