"""What all metrics share: a running mean over the turns they apply to. Torch-free."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Self, TypeVar

from fusionkit.errors import UsageError
from fusionkit.plugin import BlockConfig, BlockSite
from fusionkit.sample import Prediction, Sample, Turn

_T = TypeVar("_T")


class Tally(ABC):
    """A mean of scores from 0 to 1.

    `compute()` gives the mean under the metric's name, the `count` of answers scored and the share of them that had
    `malformed` boxes or points. Without any answer to score there is no mean: `{"count": 0}` alone.
    """

    def __init__(self, config: BlockConfig, site: BlockSite | None = None) -> None:
        self.name = config.type
        self._score = 0.0
        self._count = 0
        self._malformed = 0

    @abstractmethod
    def applies(self, turn: Turn) -> bool:
        """Whether this metric scores answers to that question; others are skipped."""

    @abstractmethod
    def score(self, prediction: Prediction, turn: Turn, sample: Sample) -> float:
        """The score of one answer, 0 to 1."""

    def update(self, prediction: Prediction, turn: Turn, sample: Sample) -> None:
        if not self.applies(turn):
            return
        self._score += self.score(prediction, turn, sample)
        self._count += 1
        self._malformed += bool(prediction.malformed)

    def merge(self, other: Self) -> None:
        """Add what another process counted."""
        if type(other) is not type(self):
            raise UsageError(f"cannot merge {other!r} into {self!r}; expected the same metric")
        self._score += other._score
        self._count += other._count
        self._malformed += other._malformed

    def compute(self) -> dict[str, float]:
        if not self._count:
            return {"count": 0}
        return {
            self.name: self._score / self._count,
            "count": self._count,
            "malformed": self._malformed / self._count,
        }

    def __repr__(self) -> str:
        return f"{self.name}({self._count} answers)"


def matched(found: Sequence[_T], wanted: Sequence[_T], closeness: Callable[[_T, _T], float]) -> list[tuple[_T, _T]]:
    """Pairs (found, wanted), closest first, each used once."""
    order = sorted(
        ((closeness(f, w), i, j) for i, f in enumerate(found) for j, w in enumerate(wanted)),
        key=lambda entry: (-entry[0], entry[1], entry[2]),
    )
    used_found: set[int] = set()
    used_wanted: set[int] = set()
    pairs = []
    for _, i, j in order:
        if i not in used_found and j not in used_wanted:
            used_found.add(i)
            used_wanted.add(j)
            pairs.append((found[i], wanted[j]))
    return pairs
