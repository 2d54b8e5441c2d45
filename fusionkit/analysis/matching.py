"""Matching the tokens of two encoders by place: a linear map between their spaces, then nearest neighbours.

Both encoders see the whole picture, so their grids lie in one frame, in sides of the picture. With a_i the tokens of A
and b_j those of B, each at mean 0 and variance 1 over its channels, n(i) the cell of B whose centre is nearest to that of
cell i of A:

    map      a_i W ≈ b_n(i) by ridge regression over half of the pictures; the other half is measured, then the halves
             change places
    match    j*(i) = argmax_j cos(a_i W - m, b_j - m), m the mean token of B in the fitted half
    mutual   i and j*(i) choose each other
    right    centres of i and its match lie within one cell: |dx| and |dy| at most one side of the larger cell

beside two controls: *chance*, the share of B's cells that would be right, and *other picture*, the tokens of A matched
with those of another picture's B: what position alone gives, the picture's content aside.

Shapes: N cells of A, M cells of B, D and E their widths.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fusionkit.analysis import linear
from fusionkit.analysis.annotated import centres
from fusionkit.geometry import Grid

MEASURES = ("right", "mutual", "mutual right", "distance")


@dataclass(frozen=True, slots=True)
class Shared:
    """Two grids in one frame: `nearest` [N], whether a pair is right [N, M], and the distances [N, M]."""

    nearest_N: Tensor
    right_NM: Tensor
    distance_NM: Tensor

    @classmethod
    def of(cls, a: Grid, b: Grid) -> Shared:
        of_a, of_b = centres(a), centres(b)
        distance_NM = torch.cdist(of_a, of_b)
        reach = torch.tensor([1 / min(a.width, b.width), 1 / min(a.height, b.height)], dtype=torch.float64)
        apart_NM2 = (of_a[:, None] - of_b).abs()
        return cls(distance_NM.argmin(-1), (apart_NM2 <= reach + 1e-9).all(-1), distance_NM)

    @property
    def chance(self) -> float:
        """Share of right matches of one who guesses."""
        return float(self.right_NM.double().mean())

    @property
    def chance_distance(self) -> float:
        return float(self.distance_NM.mean())


def equations(a_BND: Tensor, b_BME: Tensor, shared: Shared) -> dict[str, Tensor]:
    """What a batch adds to the normal equations of the map, and to the mean of B."""
    x_ND = linear.with_one(linear.normalised(a_BND)).flatten(0, 1)
    y_BME = linear.normalised(b_BME)
    targets_NE = y_BME[:, shared.nearest_N].flatten(0, 1)
    return {
        "gram": x_ND.T @ x_ND,
        "products": x_ND.T @ targets_NE,
        "sum": y_BME.double().sum((0, 1)),
        "count": torch.tensor([float(y_BME.shape[0] * y_BME.shape[1])]),
    }


@dataclass(frozen=True, slots=True)
class Bridge:
    """The map from A's tokens to B's and B's mean token."""

    map_DE: Tensor
    mean_E: Tensor

    @classmethod
    def solve(cls, sums: dict[str, Tensor], strength: float) -> Bridge:
        """From the sums of one half of the pictures."""
        return cls(linear.ridge(sums["gram"], sums["products"], strength), sums["sum"] / sums["count"])

    def similarity(self, a_ND: Tensor, b_ME: Tensor) -> Tensor:
        """Cosines of mapped tokens of A with those of B, less B's mean: [N, M]."""
        mapped_NE = linear.with_one(linear.normalised(a_ND)).double() @ self.map_DE - self.mean_E
        b_ME = linear.normalised(b_ME).double() - self.mean_E
        found: Tensor = F.normalize(mapped_NE, dim=-1) @ F.normalize(b_ME, dim=-1).T
        return found


def score(similarity_NM: Tensor, shared: Shared) -> dict[str, float | None]:
    """`right` share of matches, `mutual` share of A's tokens that choose and are chosen, share of those that are
    right (None when there are none), and the mean distance of a match."""
    chosen_N = similarity_NM.argmax(-1)
    places_N = torch.arange(len(chosen_N))
    mutual_N = similarity_NM.argmax(0)[chosen_N] == places_N
    right_N = shared.right_NM[places_N, chosen_N]
    return {
        "right": float(right_N.double().mean()),
        "mutual": float(mutual_N.double().mean()),
        "mutual right": float(right_N[mutual_N].double().mean()) if mutual_N.any() else None,
        "distance": float(shared.distance_NM[places_N, chosen_N].mean()),
    }
