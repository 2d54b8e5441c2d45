"""Peers of `mixers/orthogonal`: torch's own parametrisation in a loop, and the paper's formula as written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusionkit.bench.peers.peer import INFERENCE, Peer
from fusionkit.bench.peers.torch_orthogonal import orthogonal_linear
from fusionkit.blocks.mixers.orthogonal import OrthogonalMixer
from fusionkit.blocks.mixers.specs import OrthogonalConfig
from fusionkit.ops.mixing import EPS
from fusionkit.plugin import BlockConfig


class LayerLoop(nn.Module):
    """V = Σ_l w_l Linear_l(LN_l(z_l)) in a loop, with the block's weights.

    A shared map is one layer used L times, as in the released code. `make(Q, number)` gives the layer of one map.
    """

    def __init__(self, block: OrthogonalMixer, make: Callable[[Tensor, int], nn.Linear]) -> None:
        super().__init__()
        self.norms = layer_norms(block.norm.weight, block.norm.bias)
        self.logits = nn.Parameter(block.logits.detach().clone())
        with torch.no_grad():
            matrices = block.matrices()
        self.projections = nn.ModuleList(make(q_MD, number) for number, q_MD in enumerate(matrices))

    def forward(self, layers: Sequence[Tensor]) -> Tensor:
        w_L = self.logits.softmax(0)
        terms = [
            w_L[index] * self.projections[index % len(self.projections)](self.norms[index](x_BND))
            for index, x_BND in enumerate(layers)
        ]
        return cast(Tensor, sum(terms[1:], terms[0]))


class Formula(nn.Module):
    """Equations 2-4 and 9 line by line: Q from A at every forward, then each layer normalised, turned, weighted, added."""

    base: Tensor | None

    def __init__(self, block: OrthogonalMixer, config: OrthogonalConfig, *, cached: bool) -> None:
        super().__init__()
        self.map = config.map
        self.norms = layer_norms(block.norm.weight, block.norm.bias)
        self.logits = nn.Parameter(block.logits.detach().clone())
        self.skew = nn.Parameter(block.maps.skew.detach().clone())
        self.width_in, self.width_out = block.maps.width_in, block.maps.width_out
        self.register_buffer("base", None if block.maps.base is None else block.maps.base.detach().clone())
        self.kept: list[Tensor] | None = None
        if cached:
            with torch.no_grad():
                self.kept = [self._map(index) for index in range(len(self.skew))]

    def forward(self, layers: Sequence[Tensor]) -> Tensor:
        w_L = self.logits.softmax(0)
        maps = [self._map(index) for index in range(len(self.skew))] if self.kept is None else self.kept
        total: Tensor | None = None
        for index, x_BND in enumerate(layers):
            turned = w_L[index] * F.linear(self.norms[index](x_BND), maps[index % len(maps)])
            total = turned if total is None else total + turned
        return cast(Tensor, total)

    def _map(self, index: int) -> Tensor:
        side = max(self.width_in, self.width_out)
        rows, columns = torch.tril_indices(side, side, -1, device=self.skew.device)
        lower = self.skew.new_zeros(side, side).index_put((rows, columns), self.skew[index])
        a = lower - lower.mT
        with torch.autocast(a.device.type, enabled=False):
            if self.map == "exp":
                square: Tensor = torch.linalg.matrix_exp(a)
            else:
                one = torch.eye(side, device=a.device, dtype=a.dtype)
                square = torch.linalg.solve(one - a / 2, one + a / 2)
            if self.base is None:
                return square[: self.width_out, : self.width_in]
            base: Tensor = self.base[index]
            return base @ square if self.width_out <= self.width_in else square @ base


def layer_norms(weight_LD: Tensor, bias_LD: Tensor) -> nn.ModuleList:
    """One LayerNorm per layer with the given gains and shifts."""
    norms = nn.ModuleList()
    for weight_D, bias_D in zip(weight_LD, bias_LD, strict=True):
        norm = nn.LayerNorm(len(weight_D), eps=EPS, device=weight_D.device)
        with torch.no_grad():
            norm.weight.copy_(weight_D)
            norm.bias.copy_(bias_D)
        norms.append(norm)
    return norms


def _torch(cached: bool, block: nn.Module, config: BlockConfig) -> nn.Module:
    """Every use of a weight evaluates its map, as torch does by default, unless `cached`."""
    return LayerLoop(
        cast(OrthogonalMixer, block), lambda q_MD, number: orthogonal_linear(q_MD, cached=cached, seed=number)
    )


def _formula(cached: bool, block: nn.Module, config: BlockConfig) -> nn.Module:
    return Formula(cast(OrthogonalMixer, block), cast(OrthogonalConfig, config), cached=cached)


_BLOCK = "mixers/orthogonal"
TORCH_ORTHOGONAL = Peer(
    "torch_orthogonal",
    _BLOCK,
    "torch.nn.utils.parametrizations.orthogonal on each layer's Linear, in a loop",
    lambda block, config: _torch(False, block, config),
)
TORCH_ORTHOGONAL_CACHED = Peer(
    "torch_orthogonal_cached",
    _BLOCK,
    "the same loop with finished weights (parametrisation taken off): inference only",
    lambda block, config: _torch(True, block, config),
    INFERENCE,
)
FORMULA = Peer(
    "formula",
    _BLOCK,
    "the paper's equations line by line, maps made at every forward",
    lambda block, config: _formula(False, block, config),
)
FORMULA_CACHED = Peer(
    "formula_cached",
    _BLOCK,
    "the paper's equations line by line, maps made once: inference only",
    lambda block, config: _formula(True, block, config),
    INFERENCE,
)
