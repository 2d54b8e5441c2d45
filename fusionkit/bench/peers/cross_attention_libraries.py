"""Peers of `connectors/rope_cross_attention` from other libraries, with the block's weights, norms and gate around them."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from fusionkit.bench.peers.cross_attention import angles
from fusionkit.bench.peers.library import library, require_own_keys
from fusionkit.bench.peers.peer import Peer, UnsuitableError
from fusionkit.blocks.connectors.rope_cross_attention import RopeCrossAttention
from fusionkit.blocks.connectors.specs import RopeCrossAttentionConfig
from fusionkit.ops.tokens import Tokens
from fusionkit.plugin import BlockConfig

BLOCK = "connectors/rope_cross_attention"


def unrotated(config: BlockConfig) -> bool:
    """Whether the block is without rotation: peers that have none compute its function then."""
    return cast(RopeCrossAttentionConfig, config).rope is None


def require_plain(config: RopeCrossAttentionConfig, who: str) -> None:
    """Raises UnsuitableError for a radius or biases."""
    if config.radius is not None or config.bias:
        raise UnsuitableError(f"{who} has no radius and no biases")


class XTransformersCrossAttention(nn.Module):
    """`x_transformers.Attention` with its own rotation of neighbouring channels; angles are made once and kept."""

    def __init__(self, block: RopeCrossAttention, config: RopeCrossAttentionConfig) -> None:
        super().__init__()
        found: Any = library("x_transformers.x_transformers")
        require_plain(config, "x_transformers.Attention")
        require_own_keys(block.attention.key, block.attention.query, "x_transformers.Attention")
        self.rope, self.head_width = config.rope, block.attention.head_width
        self.norm_query, self.norm_memory = copy.deepcopy(block.norm_query), copy.deepcopy(block.norm_memory)
        self.gate = nn.Parameter(block.gate.detach().clone())
        own = block.attention
        self.attention = found.Attention(
            own.query.in_features,
            dim_head=own.head_width,
            dim_context=own.key.in_features,
            heads=config.heads,
            flash=True,
        )
        with torch.no_grad():
            self.attention.to_q.weight.copy_(self._neighbours(own.query.weight))
            self.attention.to_k.weight.copy_(self._neighbours(own.key.weight))
            self.attention.to_v.weight.copy_(own.value.weight)
            self.attention.to_out.weight.copy_(own.output.weight)
        self.kept: tuple[tuple[Tensor, int], ...] | None = None

    def forward(self, query: Tokens, memory: Tokens) -> Tokens:
        turned: dict[str, Any] = {}
        if self.rope is not None:
            if self.kept is None:
                pair = angles(query, memory, self.rope, self.head_width)
                self.kept = tuple((angle_NF.repeat_interleave(2, dim=-1)[None], 1) for angle_NF in pair)
            turned = dict(zip(("rotary_pos_emb", "context_rotary_pos_emb"), self.kept, strict=True))
        update_BND = self.attention(self.norm_query(query.x_BND), context=self.norm_memory(memory.x_BND), **turned)
        return query.with_x((query.x_BND + torch.tanh(self.gate) * update_BND).to(query.x_BND.dtype))

    def _neighbours(self, weight_AD: Tensor) -> Tensor:
        """Rows of a projection in another order within each head: j and j + K/2 become neighbours."""
        width = weight_AD.shape[-1]
        return weight_AD.reshape(-1, 2, self.head_width // 2, width).transpose(1, 2).reshape(-1, width)


class VitPytorchCrossAttention(nn.Module):
    """`vit_pytorch.cross_vit.Attention`: q from one, keys and values from the other, logits in memory; no rotation."""

    def __init__(self, block: RopeCrossAttention, config: RopeCrossAttentionConfig) -> None:
        super().__init__()
        found: Any = library("vit_pytorch.cross_vit")
        require_plain(config, "vit_pytorch.cross_vit.Attention")
        require_own_keys(block.attention.key, block.attention.query, "vit_pytorch.cross_vit.Attention")
        own = block.attention
        self.norm_memory = copy.deepcopy(block.norm_memory)
        self.gate = nn.Parameter(block.gate.detach().clone())
        self.attention = found.Attention(own.query.in_features, heads=config.heads, dim_head=own.head_width)
        self.attention.norm = copy.deepcopy(block.norm_query)
        # As released it takes a memory of the query's width only, and its output has a bias.
        self.attention.to_kv = nn.Linear(own.key.in_features, 2 * own.key.out_features, bias=False)
        self.attention.to_out[0] = nn.Linear(own.output.in_features, own.output.out_features, bias=False)
        with torch.no_grad():
            self.attention.to_q.weight.copy_(own.query.weight)
            self.attention.to_kv.weight.copy_(torch.cat((own.key.weight, own.value.weight)))
            self.attention.to_out[0].weight.copy_(own.output.weight)
        self.attention.to(own.query.weight.device)

    def forward(self, query: Tokens, memory: Tokens) -> Tokens:
        update_BND = self.attention(query.x_BND, context=self.norm_memory(memory.x_BND), kv_include_self=False)
        return query.with_x((query.x_BND + torch.tanh(self.gate) * update_BND).to(query.x_BND.dtype))


X_TRANSFORMERS = Peer(
    "x_transformers",
    BLOCK,
    "x_transformers.Attention between the block's norms and gate; angles made once, their sines at every call",
    lambda block, config: XTransformersCrossAttention(
        cast(RopeCrossAttention, block), cast(RopeCrossAttentionConfig, config)
    ),
)
VIT_PYTORCH = Peer(
    "vit_pytorch",
    BLOCK,
    "vit_pytorch.cross_vit.Attention between the block's norms and gate; the same function with `rope=null`",
    lambda block, config: VitPytorchCrossAttention(
        cast(RopeCrossAttention, block), cast(RopeCrossAttentionConfig, config)
    ),
    same=unrotated,
)
