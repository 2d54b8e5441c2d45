"""A linear layer under `torch.nn.utils.parametrizations.orthogonal`, at a given orthogonal matrix."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from fusionkit.bench.peers.peer import UnsuitableError
from fusionkit.bench.subject import skew_std


def orthogonal_linear(q_MD: Tensor, *, cached: bool, seed: int) -> nn.Linear:
    """A bias-free layer whose weight is `q_MD`, parametrised by torch's default map, the matrix exponential.

    The weight is B exp(A) with a random A of a trained size and B = Q exp(-A): at A = 0, where assigning the weight
    would leave it, the exponential is several times cheaper than it is in use. `cached` takes the parametrisation off
    and leaves the value, the cheapest form there is.
    """
    width_out, width_in = q_MD.shape
    if width_out != width_in:
        raise UnsuitableError(
            f"maps {width_in} -> {width_out} are not square: torch's map is then another parametrisation"
        )
    linear = nn.Linear(width_in, width_in, bias=False, device=q_MD.device)
    if cached:
        with torch.no_grad():
            linear.weight.copy_(q_MD)
        return linear
    base, lower = away_from_zero(q_MD, seed)
    orthogonal(linear, "weight", orthogonal_map="matrix_exp")
    held: Any = cast(nn.ModuleDict, linear.parametrizations)["weight"]
    with torch.no_grad():
        held[0].base.copy_(base)
        held.original.copy_(lower)
    return linear


def away_from_zero(q_MM: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """B and the strict lower triangle of a random A of a trained size, with B exp(A) = Q; in float64."""
    width = len(q_MM)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(width, width, generator=generator, dtype=torch.float64) * skew_std(width)
    lower = noise.tril(-1).to(q_MM.device)
    return q_MM.double() @ torch.linalg.matrix_exp(lower.mT - lower), lower
