"""Attention pooling: every window answers the question its mean asks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fusionkit.blocks.poolers.specs import AttentionPoolConfig, pooled_tokens
from fusionkit.errors import ShapeError
from fusionkit.ops.attention import UsesAttention, attend
from fusionkit.ops.shapes import require_width
from fusionkit.ops.tokens import Tokens
from fusionkit.ops.windows import pooled_coverage, split_windows
from fusionkit.plugin import BlockSite


class AttentionPool(nn.Module, UsesAttention):
    """Multi-head attention inside each window, with biases, without norm or residual.

    Shapes: x_BND -> x_BWD; inside, windows of S tokens. A window without a real token is 0 and marked invalid.

    Equation: y_w = W_o softmax(W_q mean(x_w) (W_k x_w)ᵀ / √K) W_v x_w. The mean is over the real tokens; with
    `uneven: pad_attended` the zeros that fill up the grid count as real.
    """

    def __init__(self, config: AttentionPoolConfig, site: BlockSite) -> None:
        super().__init__()
        width = site.tokens().width
        self.address = site.address
        self.width = width
        self.window = config.window
        self.uneven = config.uneven
        self.heads = config.heads
        self.head_width = width // config.heads
        self.kv_heads = config.kv_heads or config.heads
        kv_width = self.kv_heads * self.head_width
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, kv_width)
        self.value = nn.Linear(width, kv_width)
        self.output = nn.Linear(width, width)

    def forward(self, tokens: Tokens) -> Tokens:
        require_width(tokens.x_BND, self.width, self.address)
        pooled = pooled_tokens(tokens.spec, self.window, self.uneven)
        real_BWS1 = self._real(tokens)
        x_BND = tokens.x_BND
        if tokens.valid_BN is not None:
            x_BND = torch.where(tokens.valid_BN[..., None], x_BND, x_BND.new_zeros(()))
        x_BWSD = split_windows(x_BND, tokens.grid, self.window)
        y_BWD = self._attend(x_BWSD, real_BWS1)
        coverage_BW = pooled_coverage(tokens, self.window)
        if tokens.valid_BN is None or real_BWS1 is None:
            return Tokens(y_BWD, pooled.grid, pooled.frame, coverage_BN=coverage_BW)
        some_BW1 = real_BWS1.any(2)
        y_BWD = torch.where(some_BW1, y_BWD, y_BWD.new_zeros(()))
        return Tokens(y_BWD, pooled.grid, pooled.frame, some_BW1[..., 0], coverage_BN=coverage_BW)

    def _real(self, tokens: Tokens) -> Tensor | None:
        """Which places of the windows may be attended; None for all."""
        rows, columns = self.window
        tiled = tokens.grid.height % rows == 0 and tokens.grid.width % columns == 0
        if tokens.valid_BN is None and (tiled or self.uneven == "pad_attended"):
            return None
        real_BN = tokens.valid_BN
        if real_BN is None:
            real_BN = tokens.x_BND.new_ones(tokens.x_BND.shape[:2], dtype=torch.bool)
        if self.uneven == "pad_attended" and not tiled:
            raise ShapeError(
                f"{self.address or 'attention_pool'}: uneven pad_attended cannot be combined with invalid tokens",
                hint="use uneven: pad",
            )
        return split_windows(real_BN[..., None], tokens.grid, self.window)

    def _attend(self, x_BWSD: Tensor, real_BWS1: Tensor | None) -> Tensor:
        batch, windows, size, width = x_BWSD.shape
        if real_BWS1 is None:
            mean_BWD = x_BWSD.mean(2)
            mask = None
        else:
            # Padding is zero by now, so that a sum over the window is a sum over its real tokens.
            mean_BWD = x_BWSD.sum(2) / real_BWS1.sum(2).clamp(min=1).to(x_BWSD.dtype)
            mask = real_BWS1.reshape(batch * windows, 1, 1, size)
        out = attend(
            self._heads(self.query(mean_BWD), 1, self.heads),
            self._heads(self.key(x_BWSD), size, self.kv_heads),
            self._heads(self.value(x_BWSD), size, self.kv_heads),
            mask,
            backend=self.attention_backend,
        )
        pooled: Tensor = self.output(out.transpose(1, 2).reshape(batch, windows, width))
        return pooled

    def _heads(self, x: Tensor, size: int, heads: int) -> Tensor:
        """Windows to the batch axis, heads apart: [B, W, (S,) D'] -> [B W, H, S, K]."""
        return x.reshape(x.shape[0] * x.shape[1], size, heads, self.head_width).transpose(1, 2)
