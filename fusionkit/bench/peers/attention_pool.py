"""Peer of `poolers/attention_pool`: torch's multi-head attention over windows on the batch axis."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from fusionkit.bench.peers.peer import Peer, UnsuitableError
from fusionkit.blocks.poolers.attention_pool import AttentionPool
from fusionkit.blocks.poolers.specs import AttentionPoolConfig
from fusionkit.ops.tokens import Tokens


class WindowedMultiheadAttention(nn.Module):
    """`nn.MultiheadAttention` asked by each window's mean."""

    def __init__(self, block: AttentionPool, config: AttentionPoolConfig) -> None:
        super().__init__()
        if block.kv_heads != block.heads:
            raise UnsuitableError("torch's MultiheadAttention has no grouped heads")
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
        (rows, columns), grid = self.window, tokens.grid
        if grid.height % rows or grid.width % columns:
            raise UnsuitableError(f"windows {rows}x{columns} do not tile the grid {grid}")
        pooled = grid.pooled(self.window)
        x_BND = tokens.x_BND
        batch, _, width = x_BND.shape
        windows = x_BND.reshape(batch, pooled.height, rows, pooled.width, columns, width).transpose(2, 3)
        windows = windows.reshape(batch * pooled.tokens, rows * columns, width)
        out = self.attention(windows.mean(1, keepdim=True), windows, windows, need_weights=False)[0]
        return Tokens(out.reshape(batch, pooled.tokens, width), pooled, tokens.frame)


MULTIHEAD_ATTENTION = Peer(
    "torch_multihead_attention",
    "poolers/attention_pool",
    "torch.nn.MultiheadAttention over windows on the batch axis",
    lambda block, config: WindowedMultiheadAttention(cast(AttentionPool, block), cast(AttentionPoolConfig, config)),
)
