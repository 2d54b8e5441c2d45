"""Linear sum: `orthogonal` with free matrices, the control that shows what the constraint is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from fusionkit.blocks.mixers.layer_sum import LayerSum
from fusionkit.blocks.mixers.parts import LayerNorms, fill, new_vector
from fusionkit.blocks.mixers.specs import LinearSumConfig
from fusionkit.ops.mixing import normalise, project, running_sum, softmax_weights
from fusionkit.ops.orthogonal import haar
from fusionkit.plugin import BlockSite


class _Terms(NamedTuple):
    gain_LD: Tensor
    shift_LD: Tensor
    matrices: tuple[Tensor, ...]


class LinearSumMixer(LayerSum[_Terms]):
    """V = Σ_l w_l W_l LN_l(z_l),  w = softmax(logits), W_l [M, D] free.

    Starts where `orthogonal` starts (identity or random rotations) and differs from it in the constraint alone.

    Shapes: L tensors [B, N, D] -> [B, N, M].
    """

    parameter_roles: ClassVar[Mapping[str, str]] = MappingProxyType({"logits": "logits"})

    def __init__(self, config: LinearSumConfig, site: BlockSite) -> None:
        super().__init__(site)
        width = site.output.width
        self.logit_init, self.init = config.logit_init, config.init
        self.norm = LayerNorms(self.layers, self.width_in)
        self.logits = new_vector(self.layers)
        self.projections = nn.ModuleList(nn.Linear(self.width_in, width, bias=False) for _ in range(self.layers))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        fill(self.logits, self.logit_init)
        self.norm.reset_parameters()
        for matrix in self.matrices():
            if self.init == "identity":
                nn.init.eye_(matrix)
            elif not matrix.is_meta:
                matrix.copy_(haar(1, matrix.shape[1], matrix.shape[0])[0])

    def weights(self) -> Tensor:
        """w [L]: positive, sum 1."""
        return softmax_weights(self.logits)

    def matrices(self) -> tuple[Tensor, ...]:
        """W_l, L of [M, D]."""
        # Attributes, not get_parameter: torch.func.functional_call puts plain tensors in their place.
        return tuple(cast(Tensor, projection.weight) for projection in self.projections)

    def terms(self) -> _Terms:
        return _Terms(*self.norm.scaled(self.weights()), self.matrices())

    def add(self, total: Tensor | None, terms: _Terms, first: int, layers: Sequence[Tensor]) -> Tensor:
        normed = [normalise(x, terms.gain_LD[i], terms.shift_LD[i]) for i, x in enumerate(layers, first)]
        return running_sum(total, [project(normed, terms.matrices[first : first + len(layers)])])

    def close(self, total: Tensor, terms: _Terms, dtype: torch.dtype) -> Tensor:
        return total.to(dtype)
