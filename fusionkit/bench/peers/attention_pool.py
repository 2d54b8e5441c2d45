"""Peers of `poolers/attention_pool` with its weights: torch's and x-transformers' attention over windows."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from fusionkit.bench.peers.library import library, require_own_keys
from fusionkit.bench.peers.peer import Peer, UnsuitableError
from fusionkit.blocks.poolers.attention_pool import AttentionPool
from fusionkit.blocks.poolers.specs import AttentionPoolConfig
from fusionkit.geometry import Grid
from fusionkit.ops.tokens import Tokens
from fusionkit.ops.windows import split_windows

BLOCK = "poolers/attention_pool"


def tiled(tokens: Tokens, window: tuple[int, int]) -> Grid:
    """The grid after pooling. Raises UnsuitableError where windows do not tile the grid."""
    rows, columns = window
    if tokens.grid.height % rows or tokens.grid.width % columns:
        raise UnsuitableError(f"windows {rows}x{columns} do not tile the grid {tokens.grid}")
    return tokens.grid.pooled(window)


def in_windows(tokens: Tokens, window: tuple[int, int]) -> Tensor:
    """Windows on the batch axis, [B W, S, D]."""
    tiled(tokens, window)
    return split_windows(tokens.x_BND, tokens.grid, window).flatten(0, 1)


def pooled(tokens: Tokens, window: tuple[int, int], out: Tensor) -> Tokens:
    """One token of every window, in any shape that has them in order, as tokens."""
    grid = tiled(tokens, window)
    return Tokens(out.reshape(len(tokens.x_BND), grid.tokens, out.shape[-1]), grid, tokens.frame)


class WindowedMultiheadAttention(nn.Module):
    """`nn.MultiheadAttention` asked by each window's mean."""

    def __init__(self, block: AttentionPool, config: AttentionPoolConfig) -> None:
        super().__init__()
        require_own_keys(block.key, block.query, "torch.nn.MultiheadAttention")
        self.window = config.window
        weight = block.query.weight
        self.attention = nn.MultiheadAttention(block.width, block.heads, batch_first=True, device=weight.device)
        parts = (block.query, block.key, block.value)
        with torch.no_grad():
            self.attention.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
            self.attention.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
            self.attention.out_proj.weight.copy_(block.output.weight)
            self.attention.out_proj.bias.copy_(block.output.bias)

    def forward(self, tokens: Tokens) -> Tokens:
        windows = in_windows(tokens, self.window)
        out = self.attention(windows.mean(1, keepdim=True), windows, windows, need_weights=False)[0]
        return pooled(tokens, self.window, out)


class WindowedXTransformers(nn.Module):
    """`x_transformers.AttentionPool` asked by each window's mean; its projections are given the block's biases."""

    def __init__(self, block: AttentionPool, config: AttentionPoolConfig) -> None:
        super().__init__()
        found: Any = library("x_transformers.x_transformers")
        require_own_keys(block.key, block.query, "x_transformers.AttentionPool")
        self.window = config.window
        self.pool = found.AttentionPool(
            block.width,
            num_pooled_tokens=0,
            heads=block.heads,
            dim_head=block.head_width,
            attn_kwargs={"flash": True},
        )
        attention = self.pool.pooler
        names = {"to_q": block.query, "to_k": block.key, "to_v": block.value, "to_out": block.output}
        for name, part in names.items():
            linear = nn.Linear(part.in_features, part.out_features, device=part.weight.device)
            linear.load_state_dict(part.state_dict())
            setattr(attention, name, linear)

    def forward(self, tokens: Tokens) -> Tokens:
        windows = in_windows(tokens, self.window)
        return pooled(tokens, self.window, self.pool(windows, queries=windows.mean(1, keepdim=True)))


MULTIHEAD_ATTENTION = Peer(
    "torch_multihead_attention",
    BLOCK,
    "torch.nn.MultiheadAttention over windows on the batch axis",
    lambda block, config: WindowedMultiheadAttention(cast(AttentionPool, block), cast(AttentionPoolConfig, config)),
)
X_TRANSFORMERS_POOL = Peer(
    "x_transformers",
    BLOCK,
    "x_transformers.AttentionPool over windows on the batch axis",
    lambda block, config: WindowedXTransformers(cast(AttentionPool, block), cast(AttentionPoolConfig, config)),
)
