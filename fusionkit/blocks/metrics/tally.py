"""What all metrics share: scores of the answers they apply to, kept so that they can be merged and resampled. Torch-free."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

from fusionkit.blocks.metrics.interval import Group, bootstrap, bootstrap_difference
from fusionkit.errors import UsageError
from fusionkit.plugin import BlockConfig, BlockSite
from fusionkit.sample import Prediction, Sample, Turn

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Difference:
    """First minus second, its 95 % interval, and how many answers both were scored on."""

    value: float
    low: float
    high: float
    count: int


class Tally(ABC):
    """A mean of scores from 0 to 1.

    `compute()` gives the mean under the metric's name, `low` and `high` of its 95 % interval (a bootstrap over
    pictures), the `count` of answers scored, the share of them that had `malformed` boxes or points, and the means of
    what else the metric scores. Without any answer to score there is no mean: `{"count": 0}` alone.

    It can be pickled: processes score their share each, and `merge` what comes back, in any order.
    """

    def __init__(self, config: BlockConfig, site: BlockSite | None = None) -> None:
        self.name = config.type
        self._sources: list[str] = []
        self._scores: dict[str, array[float]] = {}
        self._malformed = 0

    @abstractmethod
    def applies(self, turn: Turn) -> bool:
        """Whether this metric scores answers to that question; others are skipped."""

    @abstractmethod
    def score(self, prediction: Prediction, turn: Turn, sample: Sample) -> float | Mapping[str, float]:
        """The score of one answer, 0 to 1; or several by name, the metric's own name first."""

    def update(self, prediction: Prediction, turn: Turn, sample: Sample) -> None:
        if not self.applies(turn):
            return
        found = self.score(prediction, turn, sample)
        for name, value in (found if isinstance(found, Mapping) else {self.name: found}).items():
            self._scores.setdefault(name, array("d")).append(value)
        self._sources.append(str(sample.provenance))
        self._malformed += bool(prediction.malformed)

    def merge(self, other: Self) -> None:
        """Add what another process counted."""
        if type(other) is not type(self):
            raise UsageError(f"cannot merge {other!r} into {self!r}; expected the same metric")
        self._sources += other._sources
        for name, values in other._scores.items():
            self._scores.setdefault(name, array("d")).extend(values)
        self._malformed += other._malformed

    def compute(self) -> dict[str, float]:
        if not self._sources:
            return {"count": 0}
        weights = self.weights()
        means = {name: _mean(values, weights) for name, values in self._scores.items()}
        low, high = bootstrap(self._groups(weights))
        own = {self.name: means.pop(self.name), "low": low, "high": high}
        return own | {"count": len(self._sources), "malformed": self._malformed / len(self._sources)} | means

    def difference(self, other: Self) -> Difference:
        """This score minus that of another run on the same questions, with its interval by the paired bootstrap.

        Raises UsageError when the runs did not answer the same questions.
        """
        if type(other) is not type(self):
            raise UsageError(f"cannot compare {other!r} with {self!r}; expected the same metric")
        mine, theirs = self._groups(self.weights()), other._groups(other.weights())
        if not mine or {n: g.weight for n, g in mine.items()} != {n: g.weight for n, g in theirs.items()}:
            raise UsageError(
                f"cannot compare {other!r} with {self!r}: they did not answer the same questions of the same pictures"
            )
        pairs = [(mine[name], theirs[name]) for name in sorted(mine)]
        value = math.fsum(a.score - b.score for a, b in pairs) / math.fsum(a.weight for a, _ in pairs)
        return Difference(value, *bootstrap_difference(pairs), len(self._sources))

    def weights(self) -> Sequence[float]:
        """What each answer counts in the mean, in the order they came; all alike unless a metric says otherwise."""
        return array("d", [1.0]) * len(self._sources)

    def _groups(self, weights: Sequence[float]) -> dict[str, Group]:
        """Scores and weights by picture."""
        found: dict[str, tuple[list[float], list[float]]] = {}
        for source, score, weight in zip(self._sources, self._scores.get(self.name, ()), weights, strict=True):
            scores, counted = found.setdefault(source, ([], []))
            scores.append(score * weight)
            counted.append(weight)
        # Exactly rounded sums do not depend on the order in which processes came back.
        return {name: Group(math.fsum(scores), math.fsum(counted)) for name, (scores, counted) in found.items()}

    def __repr__(self) -> str:
        return f"{self.name}({len(self._sources)} answers)"


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


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return math.fsum(v * w for v, w in zip(values, weights, strict=True)) / math.fsum(weights)
