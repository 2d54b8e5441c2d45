"""Linear maps between token spaces from sums alone, and what spectra say.

Shapes: N tokens, D and E widths, K numbers to predict, L layers. All in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def normalised(x_BND: Tensor) -> Tensor:
    """Every token at mean 0 and variance 1: a few channels of a ViT are hundreds of times larger than the rest."""
    return F.layer_norm(x_BND.float(), x_BND.shape[-1:])


def with_one(x_ND: Tensor) -> Tensor:
    """A column of ones after the others: its weight is the offset."""
    return torch.cat([x_ND, x_ND.new_ones(*x_ND.shape[:-1], 1)], dim=-1)


def ridge(gram_DD: Tensor, products_DK: Tensor, strength: float) -> Tensor:
    """W_DK = (G + λI)^-1 P with G = XᵀX, P = XᵀY, λ = strength · tr(G) / D: least squares that shrinks.

    X has a column of ones last (`with_one`), which is not shrunk. λ goes with the tokens' size and number, so one
    strength serves every layer and any count of pictures.
    """
    width = len(gram_DD) - 1
    shrink_D = torch.full((width + 1,), strength * float(gram_DD.diagonal()[:-1].sum()) / max(width, 1))
    shrink_D[-1] = 0.0
    found: Tensor = torch.linalg.solve(gram_DD + torch.diag(shrink_D.to(gram_DD)), products_DK)
    return found


def centred(products_DE: Tensor, sum_D: Tensor, sum_E: Tensor, count: int) -> Tensor:
    """XᵀY of tokens less their means, from XᵀY and the sums of both."""
    return products_DE - torch.outer(sum_D, sum_E) / count


def cka(xx_DD: Tensor, yy_EE: Tensor, xy_DE: Tensor) -> float:
    """Linear CKA from centred products: |XᵀY|²_F / (|XᵀX|_F |YᵀY|_F). 0 where one side does not vary."""
    norms = float(torch.linalg.norm(xx_DD) * torch.linalg.norm(yy_EE))
    return float(torch.linalg.norm(xy_DE) ** 2) / norms if norms else 0.0


def singular_values(covariance_DD: Tensor) -> Tensor:
    """Singular values of centred tokens, largest first, from their XᵀX."""
    values_D: Tensor = torch.linalg.eigvalsh(covariance_DD)
    return values_D.flip(0).clamp(min=0).sqrt()


def effective_rank(sigma_D: Tensor) -> float:
    """exp of the entropy of p_i = σ_i / Σσ: D when all directions are equal, 1 for one direction, 0 for none."""
    total = float(sigma_D.sum())
    if total == 0:
        return 0.0
    p_D = sigma_D / total
    return float(torch.exp(-torch.special.xlogy(p_D, p_D).sum()))


def of_sum(covariances: Sequence[Sequence[Tensor]], maps: Sequence[Tensor]) -> Tensor:
    """Covariance of V = Σ_l M_l z_l: Σ_ij M_i C_ij M_jᵀ, with C_ij the centred products of layers i and j."""
    total = torch.zeros(len(maps[0]), len(maps[0]), dtype=torch.float64)
    for left, row in zip(maps, covariances, strict=True):
        for right, product in zip(maps, row, strict=True):
            total += left @ product @ right.T
    return (total + total.T) / 2
