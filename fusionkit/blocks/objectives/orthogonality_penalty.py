"""`orthogonality_penalty`: free matrices are drawn towards orthogonal ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fusionkit.blocks.objectives.specs import OrthogonalityPenaltyConfig
from fusionkit.errors import UsageError
from fusionkit.ops.diagnostics import gram_deviation
from fusionkit.plugin import BlockSite


class OrthogonalityPenalty(nn.Module):
    """The soft form of the constraint, for a mixer whose matrices are free (`linear_sum`).

    Equation: R = mean_l |W_lᵀ W_l - I|²_F / d, or W_l W_lᵀ for matrices that narrow, d their shorter side. Zero exactly
    when all W_l are orthogonal, as those of `orthogonal` are by construction: there it has nothing to teach.

    Shapes: reads `matrices()` of the mixer, L of [M, D].
    """

    needs: ClassVar[frozenset[str]] = frozenset({"modules"})

    def __init__(self, config: OrthogonalityPenaltyConfig, site: BlockSite) -> None:
        super().__init__()
        stream, _, step = config.mixer.partition(".")
        self.address = site.address
        self.weight = config.weight
        self.reads = (f"streams.{stream}.steps.{step}",)

    def forward(self, outputs: Any, batch: Mapping[str, Any], modules: Mapping[str, Any]) -> dict[str, Tensor]:
        (address,) = self.reads
        read = getattr(modules[address], "matrices", None)
        if read is None:
            kind = type(modules[address]).__name__
            raise UsageError(f"{self.address}: {address} is a {kind} without matrices; name a linear_sum mixer")
        matrices: Sequence[Tensor] = tuple(read())
        deviations = [gram_deviation(w_MD).square().sum() / min(w_MD.shape) for w_MD in matrices]
        return {"orthogonality": self.weight * torch.stack(deviations).mean()}
