"""Peers of `poolers/attention_pool` that reach the same number of tokens with learned queries: other functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn

from fusionkit.bench.peers.attention_pool import BLOCK, in_windows, pooled, tiled
from fusionkit.bench.peers.library import library
from fusionkit.bench.peers.peer import Peer, never
from fusionkit.blocks.poolers.attention_pool import AttentionPool
from fusionkit.blocks.poolers.specs import AttentionPoolConfig
from fusionkit.ops.tokens import Tokens
from fusionkit.plugin import BlockConfig


class TimmLatentPool(nn.Module):
    """`timm.layers.AttentionPoolLatent` over windows on the batch axis, with one latent query for all."""

    def __init__(self, block: AttentionPool, config: AttentionPoolConfig) -> None:
        super().__init__()
        found: Any = library("timm.layers")
        self.window = config.window
        self.pool = found.AttentionPoolLatent(block.width, num_heads=config.heads, mlp_ratio=1.0)
        self.pool.mlp = nn.Identity()

    def forward(self, tokens: Tokens) -> Tokens:
        return pooled(tokens, self.window, self.pool(in_windows(tokens, self.window)))


class Resampler(nn.Module):
    """A learned query for every token that is left, over the whole grid; `make(count)` gives what has these queries."""

    inner: nn.Module | None

    def __init__(self, window: tuple[int, int], make: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.window, self.make = window, make
        self.inner = None  # made in the first call, which knows the grid

    def forward(self, tokens: Tokens) -> Tokens:
        if self.inner is None:
            self.inner = self.make(tiled(tokens, self.window).tokens).to(tokens.x_BND.device)
        out: Tensor = self.inner(tokens.x_BND)
        return pooled(tokens, self.window, out)


def _vit_pytorch(block: nn.Module, config: BlockConfig) -> nn.Module:
    found: Any = library("vit_pytorch.vit_with_patch_merger")
    width = cast(AttentionPool, block).width
    return Resampler(cast(AttentionPoolConfig, config).window, lambda count: found.PatchMerger(width, count))


def _x_transformers(block: nn.Module, config: BlockConfig) -> nn.Module:
    found: Any = library("x_transformers.x_transformers")
    own, flash = cast(AttentionPool, block), {"flash": True}
    shape = {"heads": own.heads, "dim_head": own.head_width, "attn_kwargs": flash}
    return Resampler(
        cast(AttentionPoolConfig, config).window,
        lambda count: found.AttentionPool(own.width, num_pooled_tokens=count, **shape),
    )


TIMM_POOL = Peer(
    "timm_attention_pool",
    BLOCK,
    "timm.layers.AttentionPoolLatent over windows: another function (one latent query)",
    lambda block, config: TimmLatentPool(cast(AttentionPool, block), cast(AttentionPoolConfig, config)),
    same=never,
)
VIT_PYTORCH_RESAMPLER = Peer(
    "vit_pytorch_resampler",
    BLOCK,
    "vit_pytorch's PatchMerger, a learned query for every token that is left, no projections: another function",
    _vit_pytorch,
    same=never,
)
X_TRANSFORMERS_RESAMPLER = Peer(
    "x_transformers_resampler",
    BLOCK,
    "x_transformers.AttentionPool, a learned query for every token that is left, over the whole grid: another function",
    _x_transformers,
    same=never,
)
