"""LLN-Layerscale: LayerNorm and a linear map per layer, summed with free scales (COMM)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from fusionkit.blocks.mixers.layer_sum import LayerSum
from fusionkit.blocks.mixers.parts import LayerNorms, fill, new_vector
from fusionkit.blocks.mixers.specs import LlnLayerscaleConfig
from fusionkit.ops.mixing import normalise, project, running_sum
from fusionkit.ops.precision import at_least_fp32
from fusionkit.plugin import BlockSite


class _Terms(NamedTuple):
    gain_LD: Tensor
    shift_LD: Tensor
    matrices: tuple[Tensor, ...]
    offset_M: Tensor


class LlnLayerscaleMixer(LayerSum[_Terms]):
    """V = Σ_l α_l (W_l LN_l(z_l) + c_l), α free: may grow, vanish or change sign.

    Shapes: L tensors [B, N, D] -> [B, N, M].
    """

    parameter_roles: ClassVar[Mapping[str, str]] = MappingProxyType({"scale": "gate"})

    def __init__(self, config: LlnLayerscaleConfig, site: BlockSite) -> None:
        super().__init__(site)
        width = site.output.width
        self.scale_init = 1 / self.layers if config.scale_init is None else config.scale_init
        self.norm = LayerNorms(self.layers, self.width_in)
        self.scale = new_vector(self.layers)
        self.projections = nn.ModuleList(nn.Linear(self.width_in, width) for _ in range(self.layers))
        fill(self.scale, None, self.scale_init)

    def reset_parameters(self) -> None:
        fill(self.scale, None, self.scale_init)
        self.norm.reset_parameters()
        for projection in self.projections:
            projection.reset_parameters()  # type: ignore[operator]  # all are nn.Linear

    def terms(self) -> _Terms:
        scale_L = at_least_fp32(self.scale)
        # Attributes, not get_parameter: torch.func.functional_call puts plain tensors in their place.
        matrices = tuple(cast(Tensor, projection.weight) for projection in self.projections)
        biases = tuple(cast(Tensor, projection.bias) for projection in self.projections)
        offset_M = (scale_L.unsqueeze(-1) * torch.stack(biases)).sum(dim=0)
        return _Terms(*self.norm.scaled(scale_L), matrices, offset_M)

    def add(self, total: Tensor | None, terms: _Terms, first: int, layers: Sequence[Tensor]) -> Tensor:
        normed = [normalise(x, terms.gain_LD[i], terms.shift_LD[i]) for i, x in enumerate(layers, first)]
        return running_sum(total, [project(normed, terms.matrices[first : first + len(layers)])])

    def close(self, total: Tensor, terms: _Terms, dtype: torch.dtype) -> Tensor:
        return (total + terms.offset_M).to(dtype)
