"""The part both rotary connectors share: projections, rotation, attention, output."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fusionkit.ops.attention import UsesAttention, attend
from fusionkit.ops.rope import Phases

Rotate = Callable[[Tensor, Phases], Tensor]


class CrossAttention(nn.Module, UsesAttention):
    """Queries of one set of tokens, keys and values of another, grouped heads.

    Shapes: query_BND, memory_BMC -> update_BND; mask broadcasts to [B, H, N, M] (see `fusionkit.ops.attention`).

    Equation: W_O softmax(R(W_Q q) R(W_K m)ᵀ / √K) W_V m, R turning by the phases passed in. A query that may attend to
    nothing gets exactly 0: the output bias is masked too.
    """

    def __init__(
        self,
        query_width: int,
        memory_width: int,
        *,
        heads: int,
        kv_heads: int,
        head_width: int,
        bias: bool,
        rotate: Rotate,
    ) -> None:
        super().__init__()
        self.rotate = rotate
        self.head_width = head_width
        self.query = nn.Linear(query_width, heads * head_width, bias=bias)
        self.key = nn.Linear(memory_width, kv_heads * head_width, bias=bias)
        self.value = nn.Linear(memory_width, kv_heads * head_width, bias=bias)
        self.output = nn.Linear(heads * head_width, query_width, bias=bias)

    def forward(
        self,
        query_BND: Tensor,
        memory_BMC: Tensor,
        phases: tuple[Phases, Phases] | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        q_BHNK = self._heads(self.query(query_BND))
        k_BGMK = self._heads(self.key(memory_BMC))
        v_BGMK = self._heads(self.value(memory_BMC))
        if phases is not None:
            q_BHNK, k_BGMK = self.rotate(q_BHNK, phases[0]), self.rotate(k_BGMK, phases[1])
        out_BHNK = attend(q_BHNK, k_BGMK, v_BGMK, mask, backend=self.attention_backend)
        update_BND: Tensor = self.output(out_BHNK.transpose(1, 2).flatten(2))
        if mask is not None and mask.dtype == torch.bool:
            reached_BN1 = mask.any(-1).any(1)[..., None]
            update_BND = torch.where(reached_BN1, update_BND, update_BND.new_zeros(()))
        return update_BND

    def _heads(self, x_BNA: Tensor) -> Tensor:
        return x_BNA.reshape(*x_BNA.shape[:2], x_BNA.shape[2] // self.head_width, self.head_width).transpose(1, 2)


def open_gate(x_BND: Tensor, gate: Tensor, update_BND: Tensor) -> Tensor:
    """x + tanh(γ) update, in the type of x. At γ = 0 the result is x, bit for bit, for any finite update."""
    return x_BND + (torch.tanh(gate) * update_BND).to(x_BND.dtype)
