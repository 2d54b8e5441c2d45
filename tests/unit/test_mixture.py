"""Mixtures: each dataset's share, each sample once per pass, and the same order for the same seed."""

from __future__ import annotations

from collections import Counter

import pytest

from fusionkit.data.mixture import Mixture, dataset_length
from fusionkit.errors import DataError
from fusionkit.sample import ENDLESS


class Listed(list):  # type: ignore[type-arg]
    """A finite dataset."""


class Endless:
    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> int:
        return index


def test_a_finite_dataset_is_seen_once_per_pass_in_another_order_each_time() -> None:
    mixture = Mixture([Listed(range(10))], [1.0], 30, seed=0)
    passes = [[mixture[position] for position in range(start, start + 10)] for start in (0, 10, 20)]
    assert all(sorted(seen) == list(range(10)) for seen in passes)
    assert len({tuple(seen) for seen in passes}) == 3
    assert list(range(10)) not in passes


def test_an_endless_dataset_is_read_at_the_position() -> None:
    mixture = Mixture([Endless()], [1.0], 5, seed=0)
    assert [mixture[position] for position in range(5)] == [0, 1, 2, 3, 4]
    assert dataset_length(Endless()) is None


def test_the_order_is_a_function_of_the_seed_and_the_position_alone() -> None:
    datasets = [Listed(range(10)), Listed(range(100, 140))]
    first = Mixture(datasets, [1.0, 1.0], 200, seed=3)
    forward = [first[position] for position in range(200)]
    again = Mixture(datasets, [1.0, 1.0], 200, seed=3)
    assert [again[position] for position in reversed(range(200))] == forward[::-1]
    other = Mixture(datasets, [1.0, 1.0], 200, seed=4)
    assert [other[position] for position in range(200)] != forward


def test_shares_follow_the_weights() -> None:
    mixture = Mixture([Listed(["a"]), Listed(["b"])], [3.0, 1.0], 4000, seed=0)
    counts = Counter(mixture[position] for position in range(4000))
    # Four standard deviations of a binomial of 4000 at 3/4.
    assert abs(counts["a"] - 3000) < 4 * (4000 * 0.75 * 0.25) ** 0.5


def test_reading_past_the_end_stops_and_an_empty_dataset_is_an_error() -> None:
    mixture = Mixture([Listed([1])], [1.0], 2, seed=0)
    assert list(mixture) == [1, 1]
    with pytest.raises(IndexError):
        mixture[2]
    with pytest.raises(DataError, match="Listed: the dataset is empty"):
        dataset_length(Listed())
