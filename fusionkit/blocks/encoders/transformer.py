"""The transformer block of the encoders that are trained from scratch."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Pre-norm self-attention and MLP, both residual.

    Shapes: x_BND -> x_BND; D = H heads of K.
    Equation: x += W_o attend(LN(x) W_qkv); x += W_down gelu(LN(x) W_up).
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        # qkv is three maps side by side: its fan for Xavier is that of one of them.
        nn.init.xavier_uniform_(self.qkv.weight, gain=2**0.5)
        for linear in (self.out, self.up, self.down):
            nn.init.xavier_uniform_(linear.weight)
        for linear in (self.qkv, self.out, self.up, self.down):
            nn.init.zeros_(linear.bias)

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BND = x_BND + self.out(self._attend(self.qkv(self.norm_attention(x_BND))))
        y_BND: Tensor = self.down(F.gelu(self.up(self.norm_mlp(x_BND))))
        return x_BND + y_BND

    def _attend(self, qkv_BNJ: Tensor) -> Tensor:
        B, N, _ = qkv_BNJ.shape
        q_BHNK, k_BHNK, v_BHNK = qkv_BNJ.view(B, N, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y_BHNK = F.scaled_dot_product_attention(q_BHNK, k_BHNK, v_BHNK)
        return y_BHNK.transpose(1, 2).reshape(B, N, -1)
