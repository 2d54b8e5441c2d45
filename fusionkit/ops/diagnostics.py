"""Looking at what mixing does: are maps orthogonal, and are layers redundant?

What an orthogonal map cannot change. For square orthogonal Q, the linear CKA of Q z with any other set of tokens, the
principal angles between them, the singular values of Q z and its effective rank are those of z, whatever Q: measured
on a single layer they say nothing about the maps, and as a loss they have zero gradient in Q. What the maps do change is
how layers add up: the cosine of Q_i z_i with Q_j z_j at one token, and through it the spectrum and the effective rank
of the sum V = Σ_l w_l Q_l z_l. Measure those, beside the controls: `linear_sum` (free matrices) and Q_l = I. And where
all layers are one z, V = (Σ_l w_l Q_l) z: no choice of maps raises its rank above that of z.

Shapes: N tokens, D width, L layers; all numbers in fp64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fusionkit.errors import ShapeError


@dataclass(frozen=True, slots=True)
class Certificate:
    """How far matrices are from orthogonal: the largest entry of |QᵀQ - I|, and all singular values' range."""

    deviation: float
    smallest: float
    largest: float
    worst: int

    def holds(self, tolerance: float = 1e-5) -> bool:
        """Whether every entry is within `tolerance`; NaN is not."""
        return self.deviation <= tolerance


def gram_deviation(w_MD: Tensor) -> Tensor:
    """WᵀW - I, or WWᵀ - I where W narrows: zero for (semi-)orthogonal W. Differentiable."""
    gram = w_MD.mT @ w_MD if w_MD.shape[-2] >= w_MD.shape[-1] else w_MD @ w_MD.mT
    return gram - torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)


@torch.no_grad()
def orthogonality(matrices: Tensor | Sequence[Tensor]) -> Certificate:
    """The certificate of L matrices [M, D], as `matrices()` of a mixer gives them; `worst` is the index of the worst.

    Example: `orthogonality(model.streams["semantic"].steps["mix"].matrices()).holds()`
    """
    exact = [w_MD.double().cpu() for w_MD in matrices]
    if not exact:
        raise ShapeError("a certificate needs at least one matrix, got none")
    deviations = torch.stack([gram_deviation(w_MD).abs().max() for w_MD in exact])
    if not deviations.isfinite().all():
        worst = int(deviations.isfinite().logical_not().nonzero()[0])
        return Certificate(float("nan"), float("nan"), float("nan"), worst)
    singular = torch.cat([torch.linalg.svdvals(w_MD) for w_MD in exact])
    return Certificate(float(deviations.max()), float(singular.min()), float(singular.max()), int(deviations.argmax()))


@torch.no_grad()
def spectrum(tokens: Tensor) -> Tensor:
    """Singular values, largest first, of the centred tokens [..., D]; all leading axes count as tokens."""
    sigma_K: Tensor = torch.linalg.svdvals(_centred(tokens))
    return sigma_K


def effective_rank(tokens: Tensor) -> float:
    """exp of the entropy of p_i = σ_i / Σσ over the spectrum: D when all directions are equal, 1 for one direction.

    Tokens that are all equal have no direction: 0.
    """
    sigma = spectrum(tokens)
    total = float(sigma.sum())
    if total == 0:
        return 0.0
    p = sigma / total
    return float(torch.exp(-torch.special.xlogy(p, p).sum()))


@torch.no_grad()
def token_cosine(layers: Sequence[Tensor]) -> Tensor:
    """Mean over tokens of cos(y_i, y_j) for all pairs of layers, [L, L], with y_l = Q_l z_l token by token [..., D].

    1 off the diagonal means that layers say the same at every token; 0 that they add nothing twice.
    """
    if len({tuple(layer.shape) for layer in layers}) != 1:
        shapes = ", ".join(str(tuple(layer.shape)) for layer in layers) or "none"
        raise ShapeError(f"expected at least one layer, all of one shape, got {shapes}")
    unit_LND = torch.stack([torch.nn.functional.normalize(_flat(layer), dim=-1) for layer in layers])
    return torch.einsum("ind,jnd->ij", unit_LND, unit_LND) / unit_LND.shape[1]


@torch.no_grad()
def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear CKA of two token sets [..., D] and [..., E]: |XᵀY|²_F / (|XᵀX|_F |YᵀY|_F), centred.

    Unchanged by orthogonal maps of either side: it cannot show what an orthogonal mixer does.
    """
    x_ND, y_NE = _centred(x), _centred(y)
    if len(x_ND) != len(y_NE):
        raise ShapeError(f"expected as many tokens on both sides, got {len(x_ND)} and {len(y_NE)}")
    norms = torch.linalg.norm(x_ND.mT @ x_ND) * torch.linalg.norm(y_NE.mT @ y_NE)
    return float(torch.linalg.norm(x_ND.mT @ y_NE) ** 2 / norms)


@torch.no_grad()
def principal_angles(x: Tensor, y: Tensor) -> Tensor:
    """Angles (radians, rising) between what the channels of two token sets [..., D] span in token space, centred.

    Unchanged by orthogonal (even by any invertible) maps of either side.
    """
    bases = [_basis(_centred(tokens)) for tokens in (x, y)]
    cosines_K: Tensor = torch.linalg.svdvals(bases[0].mT @ bases[1])
    return cosines_K.clamp(0, 1).acos()


def _basis(x_ND: Tensor) -> Tensor:
    """Orthonormal columns that span those of x; directions below rounding are none."""
    u_NK: Tensor
    u_NK, sigma_K, _ = torch.linalg.svd(x_ND, full_matrices=False)
    return u_NK[:, sigma_K > sigma_K[:1] * 1e-12 * max(x_ND.shape)]


def _flat(tokens: Tensor) -> Tensor:
    return tokens.double().flatten(0, -2)


def _centred(tokens: Tensor) -> Tensor:
    x_ND = _flat(tokens)
    return x_ND - x_ND.mean(0)
