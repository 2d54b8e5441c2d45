"""Peers that other libraries provide: run where they are installed, else a row that says so.

None is a dependency. Those that compute another function cannot be checked against our float64 result: they stand for
what people use in the block's place, are timed on the same shapes, and say so in their summary.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Any, cast

from torch import Tensor, nn

from fusionkit.bench.peers.orthogonal import LayerLoop
from fusionkit.bench.peers.peer import Peer, UnsuitableError
from fusionkit.blocks.connectors.rope_cross_attention import RopeCrossAttention
from fusionkit.blocks.connectors.specs import RopeCrossAttentionConfig
from fusionkit.blocks.mixers.orthogonal import OrthogonalMixer
from fusionkit.ops.tokens import Tokens


def library(name: str) -> ModuleType:
    """The imported library. Raises UnsuitableError with the reason where it cannot be imported."""
    if importlib.util.find_spec(name) is None:
        raise UnsuitableError(f"{name.replace('_', '-')} is not installed (pip install {name.replace('_', '-')})")
    try:
        return importlib.import_module(name)
    except Exception as error:  # a library may fail in any way against this torch; that is its reason
        raise UnsuitableError(f"{name} does not import here: {type(error).__name__}: {error}") from error


def geotorch_orthogonal(block: OrthogonalMixer) -> LayerLoop:
    """The loop over layers, each Linear under `geotorch.orthogonal`."""
    geotorch: Any = library("geotorch")

    def make(q_MD: Tensor, number: int) -> nn.Linear:
        width_out, width_in = q_MD.shape
        if width_out != width_in:
            raise UnsuitableError("geotorch's semi-orthogonal maps are another parametrisation")
        linear = nn.Linear(width_in, width_out, bias=False, device=q_MD.device)
        geotorch.orthogonal(linear, "weight")
        linear.weight = q_MD  # its way to set a parametrised weight
        return linear

    return LayerLoop(block, make)


class XTransformersCrossAttention(nn.Module):
    """`x_transformers.CrossAttender` of one layer, with its feed-forward; no rotation, no gate."""

    def __init__(self, block: RopeCrossAttention, config: RopeCrossAttentionConfig) -> None:
        super().__init__()
        found: Any = library("x_transformers")
        self.attender = found.CrossAttender(
            dim=block.norm_query.weight.shape[0],
            depth=1,
            heads=config.heads,
            attn_dim_head=block.attention.head_width,
            cross_attn_dim_context=block.norm_memory.weight.shape[0],
            attn_flash=True,
        )

    def forward(self, query: Tokens, memory: Tokens) -> Tokens:
        return query.with_x(self.attender(query.x_BND, context=memory.x_BND))


class VitPytorchCrossAttention(nn.Module):
    """`vit_pytorch.cross_vit.Attention`: q from one, keys and values from the other; no rotation, no gate."""

    def __init__(self, block: RopeCrossAttention, config: RopeCrossAttentionConfig) -> None:
        super().__init__()
        library("vit_pytorch")
        found: Any = library("vit_pytorch.cross_vit")
        width, other = block.norm_query.weight.shape[0], block.norm_memory.weight.shape[0]
        self.bring = nn.Linear(other, width) if other != width else nn.Identity()
        self.attention = found.Attention(width, heads=config.heads, dim_head=block.attention.head_width)

    def forward(self, query: Tokens, memory: Tokens) -> Tokens:
        update = self.attention(query.x_BND, context=self.bring(memory.x_BND), kv_include_self=False)
        return query.with_x(query.x_BND + update)


class TimmAttentionPool(nn.Module):
    """`timm.layers.AttentionPoolLatent` over windows on the batch axis, with one latent query for all."""

    def __init__(self, block: Any, config: Any) -> None:
        super().__init__()
        library("timm")
        found: Any = library("timm.layers")
        self.window = config.window
        self.pool = found.AttentionPoolLatent(block.width, num_heads=config.heads, mlp_ratio=1.0)
        self.pool.mlp = nn.Identity()

    def forward(self, tokens: Tokens) -> Tokens:
        batch, _, width = tokens.x_BND.shape
        (rows, columns), pooled = self.window, tokens.grid.pooled(self.window)
        if tokens.grid.height % rows or tokens.grid.width % columns:
            raise UnsuitableError("this peer needs a grid of whole windows")
        windows = tokens.x_BND.reshape(batch, pooled.height, rows, pooled.width, columns, width).transpose(2, 3)
        out = self.pool(windows.reshape(batch * pooled.tokens, rows * columns, width))
        return Tokens(out.reshape(batch, pooled.tokens, width), pooled, tokens.frame)


GEOTORCH = Peer(
    "geotorch",
    "mixers/orthogonal",
    "geotorch.orthogonal on each layer's Linear, in a loop",
    lambda block, config: geotorch_orthogonal(cast(OrthogonalMixer, block)),
)
X_TRANSFORMERS = Peer(
    "x_transformers",
    "connectors/rope_cross_attention",
    "x_transformers.CrossAttender, one layer with its feed-forward: another function",
    lambda block, config: XTransformersCrossAttention(
        cast(RopeCrossAttention, block), cast(RopeCrossAttentionConfig, config)
    ),
    same=False,
)
VIT_PYTORCH = Peer(
    "vit_pytorch",
    "connectors/rope_cross_attention",
    "vit_pytorch.cross_vit.Attention: another function (no rotation, no gate)",
    lambda block, config: VitPytorchCrossAttention(
        cast(RopeCrossAttention, block), cast(RopeCrossAttentionConfig, config)
    ),
    same=False,
)
TIMM_POOL = Peer(
    "timm_attention_pool",
    "poolers/attention_pool",
    "timm.layers.AttentionPoolLatent over windows: another function (one latent query)",
    lambda block, config: TimmAttentionPool(block, config),
    same=False,
)
