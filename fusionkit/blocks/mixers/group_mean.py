"""Group means: layers averaged in groups, the means side by side on the channel axis (Dense Connector)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fusionkit.blocks.mixers.layer_sum import LayerSum
from fusionkit.blocks.mixers.parts import stack_of
from fusionkit.blocks.mixers.specs import GroupMeanConfig, layer_groups
from fusionkit.ops.mixing import running_sum
from fusionkit.ops.precision import at_least_fp32
from fusionkit.plugin import BlockSite

Totals = tuple[Tensor | None, ...]


class _Terms(NamedTuple):
    groups: tuple[tuple[int, ...], ...]  # positions in the stack


class GroupMeanMixer(LayerSum[_Terms]):
    """V = [1/|G_1| Σ_{l in G_1} z_l ; ... ; 1/|G_K| Σ_{l in G_K} z_l]. No parameters.

    Shapes: L tensors [B, N, D] -> [B, N, K D].
    """

    def __init__(self, config: GroupMeanConfig, site: BlockSite) -> None:
        super().__init__(site)
        self.groups = layer_groups(config.groups, stack_of(site).layers)

    def terms(self) -> _Terms:
        return _Terms(self.groups)

    def add(self, total: Totals | None, terms: _Terms, first: int, layers: Sequence[Tensor]) -> Totals:
        totals: list[Tensor | None] = [None] * len(terms.groups) if total is None else list(total)
        for index, x_BND in enumerate(layers, first):
            for place, group in enumerate(terms.groups):
                if index in group:
                    totals[place] = running_sum(totals[place], [at_least_fp32(x_BND) / len(group)])
        return tuple(totals)

    def close(self, total: tuple[Tensor, ...], terms: _Terms, dtype: torch.dtype) -> Tensor:
        return torch.cat([mean_BND.to(dtype) for mean_BND in total], dim=-1)
