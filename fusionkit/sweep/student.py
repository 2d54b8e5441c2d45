"""Means over seeds with their 95 % intervals (Student's t), without scipy. Torch-free."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086)  # fmt: skip
"""Two-sided 95 % quantiles for 1 to 20 degrees of freedom; beyond, the series below is good to 3 digits."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and half the width of its interval; no interval from one value."""

    mean: float
    half: float | None

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if self.half is None else f"{self.mean:.3f} ± {self.half:.3f}"


def quantile(freedom: int) -> float:
    """Two-sided 95 % quantile of Student's t."""
    if freedom <= len(_T):
        return _T[freedom - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def estimate(values: Sequence[float]) -> Estimate:
    """The mean over seeds with its interval."""
    if len(values) < 2:
        return Estimate(statistics.fmean(values), None)
    half = quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(statistics.fmean(values), half)
