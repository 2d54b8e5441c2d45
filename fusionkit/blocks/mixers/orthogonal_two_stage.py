"""The mixer of the released CoME-VL code: weighted sum, shared map, the same LayerNorm again, second map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from fusionkit.blocks.mixers.layer_sum import LayerSum
from fusionkit.blocks.mixers.parts import fill, new_vector
from fusionkit.blocks.mixers.specs import OrthogonalTwoStageConfig
from fusionkit.ops.layer_norm_sum import layer_norm_sum
from fusionkit.ops.maps import OrthogonalMaps
from fusionkit.ops.mixing import EPS, normalise, project, softmax_weights
from fusionkit.plugin import BlockSite


class _Terms(NamedTuple):
    gain_LD: Tensor
    shift_LD: Tensor
    first_MD: Tensor
    second_MD: Tensor


class OrthogonalTwoStageMixer(LayerSum[_Terms]):
    """V = Q₂ LN(Σ_l w_l Q₁ LN(z_l)),  one LN for all; Q₁ [D, D] leaves the sum, Q₂ [M, D].

    The released code lists one layer twice. Selections name each layer once, so such weights are carried over with
    the repeated entries' logits merged (`fusionkit.ops.mixing.merge_repeated_logits`), which is exact because all
    entries share the norm and the map.

    Shapes: L tensors [B, N, D] -> [B, N, M].
    """

    parameter_roles: ClassVar[Mapping[str, str]] = MappingProxyType({"logits": "logits"})

    def __init__(self, config: OrthogonalTwoStageConfig, site: BlockSite) -> None:
        super().__init__(site)
        width = self.width_in
        self.logit_init, self.sums_layer_norms = config.logit_init, True
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.logits = new_vector(self.layers)
        self.first = OrthogonalMaps(1, width, width, config.map, config.init)
        self.second = OrthogonalMaps(1, width, site.output.width, config.map, config.init)
        fill(self.logits, self.logit_init)

    def reset_parameters(self) -> None:
        fill(self.logits, self.logit_init)
        for part in (self.norm, self.first, self.second):
            part.reset_parameters()

    def weights(self) -> Tensor:
        """w [L]: positive, sum 1."""
        return softmax_weights(self.logits)

    def terms(self) -> _Terms:
        dtype, w_L1 = self.norm.weight.dtype, self.weights().unsqueeze(-1)
        gain_LD, shift_LD = w_L1 * self.norm.weight, w_L1 * self.norm.bias
        return _Terms(gain_LD, shift_LD, self.first.matrices()[0].to(dtype), self.second.matrices()[0].to(dtype))

    def add(self, total: Tensor | None, terms: _Terms, first: int, layers: Sequence[Tensor]) -> Tensor:
        here = slice(first, first + len(layers))
        gain_KD, shift_KD = terms.gain_LD[here], terms.shift_LD[here]
        return layer_norm_sum(layers, gain_KD, shift_KD, total, backend=self.layer_norm_sum_backend)

    def close(self, total: Tensor, terms: _Terms, dtype: torch.dtype) -> Tensor:
        merged_BND = project([total.to(dtype)], [terms.first_MD])
        return project([normalise(merged_BND, self.norm.weight, self.norm.bias)], [terms.second_MD]).to(dtype)
