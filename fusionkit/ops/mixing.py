"""Sums over layers: weights, normalisation with the weight folded in, and an fp32 running total."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fusionkit.errors import ShapeError
from fusionkit.ops.precision import at_least_fp32

EPS = 1e-5
"""Added to the variance in every LayerNorm of a mixer; torch's default, and the released code's."""


def softmax_weights(logits_L: Tensor) -> Tensor:
    """w [L]: positive, sum 1; at least fp32."""
    return at_least_fp32(logits_L).softmax(dim=0)


def normalise(x_BND: Tensor, gain_D: Tensor | None = None, shift_D: Tensor | None = None) -> Tensor:
    """LayerNorm over the width. A layer's weight w costs nothing when `gain` and `shift` already carry it:
    w LN(x; g, b) = LN(x; w g, w b)."""
    gain_D = None if gain_D is None else gain_D.to(x_BND.dtype)
    shift_D = None if shift_D is None else shift_D.to(x_BND.dtype)
    return F.layer_norm(x_BND, x_BND.shape[-1:], gain_D, shift_D, EPS)


def project(terms: Sequence[Tensor], matrices: Sequence[Tensor]) -> Tensor:
    """Σ_i Q_i h_i over a few layers as one product, so that the sum is rounded once.

    Shapes: terms h_i [B, N, D], matrices Q_i [M, D] -> [B, N, M].
    """
    if len(terms) == 1:
        return F.linear(terms[0], matrices[0].to(terms[0].dtype))
    return F.linear(torch.cat(list(terms), dim=-1), torch.cat([q.to(terms[0].dtype) for q in matrices], dim=-1))


def running_sum(total: Tensor | None, terms: Sequence[Tensor]) -> Tensor:
    """`total` (None at the start) plus `terms`, kept in at least fp32.

    Without grad it adds in place, so the total and the first term must be the caller's own.
    """
    result, rest = (at_least_fp32(terms[0]), terms[1:]) if total is None else (total, terms)
    for term in rest:
        result = result + term if torch.is_grad_enabled() else result.add_(term)
    return result


def merge_repeated_logits(layers: Sequence[int], logits_K: Tensor) -> tuple[tuple[int, ...], Tensor]:
    """The same softmax weights with every layer once: a layer's logit becomes the logsumexp of its entries.

    Exact for sums in which repeated entries share their map and norm (the released mixers list one layer twice).

    Shapes: layers K numbers in any order, logits_K [K] -> sorted unique layers, logits [their count].
    """
    if logits_K.shape != (len(layers),):
        raise ShapeError(f"expected one logit for each of {len(layers)} entries, got {list(logits_K.shape)}")
    unique = tuple(sorted(set(layers)))
    merged = [logits_K[[i for i, entry in enumerate(layers) if entry == layer]].logsumexp(0) for layer in unique]
    return unique, torch.stack(merged)
