"""Orthogonal mixing: rotate each layer, then take the weighted mean (CoME-VL, equations 2-4 and 9)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fusionkit.blocks.mixers.layer_sum import LayerSum
from fusionkit.blocks.mixers.parts import LayerNorms, fill, new_vector
from fusionkit.blocks.mixers.specs import OrthogonalConfig
from fusionkit.ops.layer_norm_sum import layer_norm_sum
from fusionkit.ops.maps import OrthogonalMaps
from fusionkit.ops.mixing import normalise, project, running_sum, softmax_weights
from fusionkit.plugin import BlockSite


class _Terms(NamedTuple):
    gain_LD: Tensor
    shift_LD: Tensor
    matrices: tuple[Tensor, ...]  # L or 1 of [M, D]


class OrthogonalMixer(LayerSum[_Terms]):
    """V = Σ_l w_l Q_l LN_l(z_l),  w = softmax(logits).

    With `share: encoder` all Q_l are one Q, which leaves the sum: V = Q Σ_l w_l LN_l(z_l), one product for all
    layers. (One rotation after averaging: unlike a Q per layer it cannot turn layers against each other.)

    Shapes: L tensors [B, N, D] -> [B, N, M].
    Deviation from the paper: equation 4 writes one map per encoder, equation 3 one per layer; `share` chooses.
    """

    parameter_roles: ClassVar[Mapping[str, str]] = MappingProxyType({"logits": "logits"})

    def __init__(self, config: OrthogonalConfig, site: BlockSite) -> None:
        super().__init__(site)
        self.shared = self.sums_layer_norms = config.share == "encoder"
        self.logit_init = config.logit_init
        self.norm = LayerNorms(self.layers, self.width_in)
        self.logits = new_vector(self.layers)
        maps = 1 if self.shared else self.layers
        self.maps = OrthogonalMaps(maps, self.width_in, site.output.width, config.map, config.init)
        fill(self.logits, self.logit_init)

    def reset_parameters(self) -> None:
        fill(self.logits, self.logit_init)
        self.norm.reset_parameters()
        self.maps.reset_parameters()

    def weights(self) -> Tensor:
        """w [L]: positive, sum 1."""
        return softmax_weights(self.logits)

    def matrices(self) -> Tensor:
        """Q [L, M, D], or [1, M, D] when shared."""
        return self.maps.matrices()

    def terms(self) -> _Terms:
        # The maps are made in fp32 and rounded to the dtype of the module only here.
        q_LMD = self.matrices().to(self.norm.weight.dtype)
        return _Terms(*self.norm.scaled(self.weights()), q_LMD.unbind())

    def add(self, total: Tensor | None, terms: _Terms, first: int, layers: Sequence[Tensor]) -> Tensor:
        here = slice(first, first + len(layers))
        gain_KD, shift_KD = terms.gain_LD[here], terms.shift_LD[here]
        if self.shared:
            return layer_norm_sum(layers, gain_KD, shift_KD, total, backend=self.layer_norm_sum_backend)
        normed = [normalise(x, gain_D, shift_D) for x, gain_D, shift_D in zip(layers, gain_KD, shift_KD, strict=True)]
        return running_sum(total, [project(normed, terms.matrices[here])])

    def close(self, total: Tensor, terms: _Terms, dtype: torch.dtype) -> Tensor:
        return (project([total.to(dtype)], terms.matrices) if self.shared else total).to(dtype)
