"""Text tokens look at the pictures inside the decoder, through a gate that starts shut (Flamingo)."""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusionkit.blocks.injectors.specs import GatedCrossAttentionConfig
from fusionkit.errors import ShapeError
from fusionkit.ops.attention import UsesAttention, attend
from fusionkit.ops.placement import NEVER, Placement
from fusionkit.ops.shapes import require_width
from fusionkit.ops.tokens import Tokens
from fusionkit.plugin import BlockSite


class GatedCrossAttention(nn.Module):
    """The picture as a memory beside the text: any number of visual tokens, none of them in the context.

    Shapes: memory x_CMD of crops; hidden_BTE -> hidden_BTE. `prepare` projects the memory of every row once: keys and
    values serve all steps of a generation.

    Equation (paper Eq. 15, Flamingo's gate): h = h + tanh(γ_l) W_O softmax(W_Q LN(h) (W_K LN(v))ᵀ / √K) W_V LN(v), at
    every one of `layers` with its own weights. Named differences: heads with an output map W_O, and the two LN. A row
    sees the crops whose image tokens it holds, each from its first token on, so that what is generated later changes
    nothing before it, and in a row of several samples to the end of its own; image tokens themselves are left as they are. Flamingo's gated feed-forward is left out: a
    decoder block has one.
    """

    def __init__(self, config: GatedCrossAttentionConfig, site: BlockSite) -> None:
        super().__init__()
        memory, width = site.tokens(), site.output.width
        self.address = site.address
        self.layers = config.layers
        self.when = config.when
        self.memory_width = memory.width
        self.norm_memory = nn.LayerNorm(memory.width)
        self.blocks = nn.ModuleDict({str(layer): _Attention(width, memory.width, config) for layer in config.layers})

    def prepare(self, tokens: Tokens, placement: Placement) -> tuple[Tensor, ...]:
        """What the decoder carries, rows first: image positions, from where to where each memory token is seen, keys and values."""
        require_width(tokens.x_BND, self.memory_width, self.address)
        crops_BC, memory = placement.crops_BC, tokens.x_BND.shape[1]
        there_BC = crops_BC >= 0
        starts_BM = torch.where(there_BC, placement.starts_BC, NEVER).repeat_interleave(memory, dim=1)
        x_CMD = tokens.x_BND
        if tokens.valid_BN is not None:
            # An invalid token may hold anything; 0 times NaN would still be NaN.
            x_CMD = torch.where(tokens.valid_BN[..., None], x_CMD, x_CMD.new_zeros(()))
            starts_BM = torch.where(tokens.valid_BN[crops_BC.clamp(min=0)].flatten(1), starts_BM, NEVER)
        # Keys and values are made once per crop, however many rows show it.
        state = [placement.image_BT, starts_BM, placement.ends_BC.repeat_interleave(memory, dim=1)]
        normed_CMD = self.norm_memory(x_CMD)
        for layer in self.layers:
            for x_CMA in self._block(layer).keys_values(normed_CMD):
                state.append(x_CMA[crops_BC.clamp(min=0)].flatten(1, 2))
        return tuple(state)

    def forward(self, hidden_BTE: Tensor, state: tuple[Tensor, ...], layer: int, first: int = 0) -> Tensor:
        image_BT, starts_BM, ends_BM, *keys_values = state
        length = hidden_BTE.shape[1]
        if starts_BM.shape[1] == 0:
            return hidden_BTE
        places_T1 = torch.arange(first, first + length, device=starts_BM.device)[:, None]
        image_BT = image_BT[:, first : first + length]
        image_BT = F.pad(image_BT, (0, length - image_BT.shape[1]))
        visible_BTM = (starts_BM[:, None] <= places_T1) & (places_T1 < ends_BM[:, None]) & ~image_BT[..., None]
        place = 2 * self.layers.index(layer)
        attention = self._block(layer)
        changed_BTE: Tensor = attention(hidden_BTE, *keys_values[place : place + 2], visible_BTM, self.address)
        return changed_BTE

    def _block(self, layer: int) -> _Attention:
        return cast(_Attention, self.blocks[str(layer)])


class _Attention(nn.Module, UsesAttention):
    """The attention of one layer: h + tanh(γ) W_O softmax(W_Q LN(h) kᵀ / √K) v."""

    parameter_roles: ClassVar[dict[str, str]] = {"gate": "gate"}

    def __init__(self, width: int, memory_width: int, config: GatedCrossAttentionConfig) -> None:
        super().__init__()
        self.width = width
        self.gate_init = config.gate_init
        self.head_width = config.head_width or width // config.heads
        kv_width = (config.kv_heads or config.heads) * self.head_width
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, config.heads * self.head_width, bias=False)
        self.key = nn.Linear(memory_width, kv_width, bias=False)
        self.value = nn.Linear(memory_width, kv_width, bias=False)
        self.output = nn.Linear(config.heads * self.head_width, width, bias=False)
        self.gate = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the gate to its start; the layers inside have their own."""
        nn.init.constant_(self.gate, self.gate_init)

    def keys_values(self, memory_CMD: Tensor) -> tuple[Tensor, Tensor]:
        return self.key(memory_CMD), self.value(memory_CMD)

    def forward(
        self, hidden_BTE: Tensor, key_BMA: Tensor, value_BMA: Tensor, visible_BTM: Tensor, address: str
    ) -> Tensor:
        if hidden_BTE.shape[-1] != self.width:
            raise ShapeError(f"{address or 'injector'}: expected width {self.width}, got {hidden_BTE.shape[-1]}")
        q, k, v = (self._heads(x) for x in (self.query(self.norm(hidden_BTE)), key_BMA, value_BMA))
        out_BHTK = attend(q, k, v, visible_BTM[:, None], backend=self.attention_backend)
        update_BTE: Tensor = self.output(out_BHTK.transpose(1, 2).flatten(2))
        return hidden_BTE + (torch.tanh(self.gate) * update_BTE).to(hidden_BTE.dtype)

    def _heads(self, x_BNA: Tensor) -> Tensor:
        return x_BNA.reshape(*x_BNA.shape[:2], -1, self.head_width).transpose(1, 2)
