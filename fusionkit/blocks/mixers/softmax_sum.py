"""Softmax sum: a learned weighted mean of the layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fusionkit.blocks.mixers.layer_sum import LayerSum
from fusionkit.blocks.mixers.parts import LayerNorms, fill, new_vector
from fusionkit.blocks.mixers.specs import SoftmaxSumConfig
from fusionkit.ops.layer_norm_sum import layer_norm_sum
from fusionkit.ops.mixing import running_sum, softmax_weights
from fusionkit.ops.precision import at_least_fp32
from fusionkit.plugin import BlockSite


class _Terms(NamedTuple):
    weight_L: Tensor
    gain_LD: Tensor | None
    shift_LD: Tensor | None


class SoftmaxSumMixer(LayerSum[_Terms]):
    """V = Σ_l w_l z_l, or Σ_l w_l LN_l(z_l) with `norm`; w = softmax(logits).

    Shapes: L tensors [B, N, D] -> [B, N, D].
    """

    parameter_roles: ClassVar[Mapping[str, str]] = MappingProxyType({"logits": "logits"})

    def __init__(self, config: SoftmaxSumConfig, site: BlockSite) -> None:
        super().__init__(site)
        self.logit_init, self.sums_layer_norms = config.logit_init, config.norm
        self.norm = LayerNorms(self.layers, self.width_in) if config.norm else None
        self.logits = new_vector(self.layers)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        fill(self.logits, self.logit_init)
        if self.norm is not None:
            self.norm.reset_parameters()

    def weights(self) -> Tensor:
        """w [L]: positive, sum 1."""
        return softmax_weights(self.logits)

    def terms(self) -> _Terms:
        w_L = self.weights()
        return _Terms(w_L, None, None) if self.norm is None else _Terms(w_L, *self.norm.scaled(w_L))

    def add(self, total: Tensor | None, terms: _Terms, first: int, layers: Sequence[Tensor]) -> Tensor:
        if terms.gain_LD is None or terms.shift_LD is None:
            return running_sum(total, [terms.weight_L[i] * at_least_fp32(x) for i, x in enumerate(layers, first)])
        here = slice(first, first + len(layers))
        gain_KD, shift_KD = terms.gain_LD[here], terms.shift_LD[here]
        return layer_norm_sum(layers, gain_KD, shift_KD, total, backend=self.layer_norm_sum_backend)

    def close(self, total: Tensor, terms: _Terms, dtype: torch.dtype) -> Tensor:
        return total.to(dtype)
