"""Mean and interval of numbers that come one by one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import exp, lgamma, log, pi, sqrt
from typing import Any


@dataclass(slots=True)
class Running:
    """Count, mean and spread, by Welford's update: memory does not grow, and nothing cancels."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        change = value - self.mean
        self.mean += change / self.count
        self.squares += change * (value - self.mean)

    @property
    def std(self) -> float | None:
        """Standard deviation of the sample; None for fewer than two numbers."""
        return sqrt(self.squares / (self.count - 1)) if self.count > 1 else None

    @property
    def half_width(self) -> float | None:
        """Half the 95 % interval of the mean, by Student's t; None for fewer than two numbers."""
        return None if self.std is None else student_t(self.count - 1) * self.std / sqrt(self.count)

    def summary(self) -> dict[str, Any]:
        """`mean`, `low` and `high` (the 95 % interval of the mean), `std` and `count`."""
        half = self.half_width
        return {
            "mean": self.mean,
            "low": None if half is None else self.mean - half,
            "high": None if half is None else self.mean + half,
            "std": self.std,
            "count": self.count,
        }


@lru_cache(maxsize=1024)
def student_t(freedom: int) -> float:
    """The 97.5 % quantile of Student's t: bisection on Simpson's integral of the density."""
    if freedom > 100_000:
        return 1.959964
    low, high = 1.9, 13.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _between_zero_and(middle, freedom) < 0.475 else (low, middle)
    return (low + high) / 2


def _between_zero_and(limit: float, freedom: int, pieces: int = 400) -> float:
    scale = lgamma((freedom + 1) / 2) - lgamma(freedom / 2) - 0.5 * log(freedom * pi)
    step = limit / pieces
    weights = [1, *([4, 2] * (pieces // 2))[: pieces - 1], 1]
    density = [exp(scale - (freedom + 1) / 2 * log(1 + (step * place) ** 2 / freedom)) for place in range(pieces + 1)]
    return step / 3 * sum(weight * value for weight, value in zip(weights, density, strict=True))
