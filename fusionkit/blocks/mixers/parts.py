"""What several mixers are made of: a LayerNorm per layer, and starting values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn

from fusionkit.geometry import LayerStackSpec
from fusionkit.ops.precision import full_dtype
from fusionkit.plugin import BlockSite, ShapeError


class LayerNorms(nn.Module):
    """Gain and shift of one LayerNorm per layer.

    Parameters: weight [L, D], bias [L, D]. `scaled(w_L)` gives both with each layer's weight folded in.
    """

    parameter_roles: ClassVar[Mapping[str, str]] = MappingProxyType({"weight": "norm", "bias": "norm"})

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(layers, width))
        self.bias = nn.Parameter(torch.empty(layers, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def scaled(self, w_L: Tensor) -> tuple[Tensor, Tensor]:
        """w_l g_l and w_l b_l, both [L, D]."""
        return w_L.unsqueeze(-1) * self.weight, w_L.unsqueeze(-1) * self.bias

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]} x {self.weight.shape[1]}"


def new_vector(layers: int) -> nn.Parameter:
    """One number per layer that half precision must not reach; filled by the caller."""
    return nn.Parameter(torch.empty(layers, dtype=full_dtype()))


@torch.no_grad()
def fill(vector: Tensor, values: Sequence[float] | None, default: float = 0.0) -> None:
    """Starting values, one per layer; `default` for all if not given."""
    if values is None:
        vector.fill_(default)
        return
    if len(values) != len(vector):
        raise ShapeError(f"{len(vector)} layers are selected, got {len(values)} starting values", field="logit_init")
    vector.copy_(torch.tensor(values, dtype=vector.dtype))


def stack_of(site: BlockSite) -> LayerStackSpec:
    """The layer stack a mixer is built for."""
    if not isinstance(site.input, LayerStackSpec):
        raise ShapeError(f"{site.address or 'mixer'}: expected a layer stack, got {site.input}", field="input")
    return site.input
