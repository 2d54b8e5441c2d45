"""Peer of `mixers/orthogonal`: geotorch's parametrisation in a loop."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from fusionkit.bench.peers.library import library
from fusionkit.bench.peers.orthogonal import LayerLoop
from fusionkit.bench.peers.peer import Peer, UnsuitableError
from fusionkit.bench.peers.torch_orthogonal import away_from_zero
from fusionkit.blocks.mixers.orthogonal import OrthogonalMixer


def geotorch_linear(q_MD: Tensor, number: int) -> nn.Linear:
    """A bias-free layer under `geotorch.orthogonal`, at a weight of `q_MD` and a skew matrix of a trained size."""
    geotorch: Any = library("geotorch")
    width_out, width_in = q_MD.shape
    if width_out != width_in:
        raise UnsuitableError(
            f"maps {width_in} -> {width_out} are not square: geotorch's map is then another parametrisation"
        )
    linear = nn.Linear(width_in, width_out, bias=False, device=q_MD.device)
    geotorch.orthogonal(linear, "weight")
    base, lower = away_from_zero(q_MD, number)
    held: Any = cast(nn.ModuleDict, linear.parametrizations)["weight"]
    with torch.no_grad():
        held[0].base.copy_(base)
        held.original.copy_(lower)
    return linear


GEOTORCH = Peer(
    "geotorch",
    "mixers/orthogonal",
    "geotorch.orthogonal on each layer's Linear, in a loop",
    lambda block, config: LayerLoop(cast(OrthogonalMixer, block), geotorch_linear),
)
