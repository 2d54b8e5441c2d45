"""The order in which samples are seen: a pure function of the seed and the position, so training can resume anywhere."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from fusionkit.errors import DataError
from fusionkit.sample import ENDLESS, Sample


class Mixture:
    """`length` samples drawn from several datasets by weight.

    Position p of a finite dataset is entry p of a permutation made anew for each pass (seed, pass), so one dataset
    alone is seen once per pass; an endless one (its length is ENDLESS) is read at index p.
    """

    def __init__(self, datasets: Sequence[Any], weights: Sequence[float], length: int, seed: int) -> None:
        self.datasets = list(datasets)
        self.weights = list(weights)
        self.length = length
        self.seed = seed
        self._orders: dict[tuple[int, int], list[int]] = {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> Sample:
        if not 0 <= position < self.length:
            raise IndexError(position)
        chosen = 0
        if len(self.datasets) > 1:
            draw = random.Random(f"{self.seed}/{position}")
            chosen = draw.choices(range(len(self.datasets)), self.weights)[0]
        dataset = self.datasets[chosen]
        size = dataset_length(dataset)
        sample: Sample = dataset[position if size is None else self._order(chosen, position // size)[position % size]]
        return sample

    def _order(self, chosen: int, round: int) -> list[int]:
        if (chosen, round) not in self._orders:
            self._orders = {key: order for key, order in self._orders.items() if key[1] >= round - 1}
            order = list(range(len(self.datasets[chosen])))
            random.Random(f"{self.seed}/{chosen}/{round}").shuffle(order)
            self._orders[chosen, round] = order
        return self._orders[chosen, round]


def dataset_length(dataset: Any) -> int | None:
    """Samples in a dataset; None if it does not end. Raises DataError when it is empty."""
    length = len(dataset)
    if length == 0:
        raise DataError(f"{type(dataset).__name__}: the dataset is empty")
    return None if length >= ENDLESS else length
