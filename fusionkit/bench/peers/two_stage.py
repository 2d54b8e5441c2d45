"""Peers of `mixers/orthogonal_two_stage`: the released code's order of work, maps evaluated at every use."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from fusionkit.bench.peers.peer import INFERENCE, Peer
from fusionkit.bench.peers.torch_orthogonal import orthogonal_linear
from fusionkit.blocks.mixers.orthogonal_two_stage import OrthogonalTwoStageMixer


class ReleasedForm(nn.Module):
    """V = fc2(LN(Σ_l w_l fc1(LN(z_l)))) with both layers under torch's parametrisation: fc1's map is evaluated L times."""

    def __init__(self, block: OrthogonalTwoStageMixer, *, cached: bool) -> None:
        super().__init__()
        self.norm = copy.deepcopy(block.norm)
        self.logits = nn.Parameter(block.logits.detach().clone())
        with torch.no_grad():
            first, second = block.first.matrices()[0], block.second.matrices()[0]
        self.fc1 = orthogonal_linear(first, cached=cached, seed=0)
        self.fc2 = orthogonal_linear(second, cached=cached, seed=1)

    def forward(self, layers: Sequence[Tensor]) -> Tensor:
        w_L = self.logits.softmax(0)
        terms = [w_L[index] * self.fc1(self.norm(x_BND)) for index, x_BND in enumerate(layers)]
        merged = cast(Tensor, sum(terms[1:], terms[0]))
        out: Tensor = self.fc2(self.norm(merged))
        return out


_BLOCK = "mixers/orthogonal_two_stage"
RELEASED_FORM = Peer(
    "released_form",
    _BLOCK,
    "the released code's loop: one parametrised Linear used for every layer, then the second",
    lambda block, config: ReleasedForm(cast(OrthogonalTwoStageMixer, block), cached=False),
)
RELEASED_FORM_CACHED = Peer(
    "released_form_cached",
    _BLOCK,
    "the released code's loop with finished weights: inference only",
    lambda block, config: ReleasedForm(cast(OrthogonalTwoStageMixer, block), cached=True),
    INFERENCE,
)
