"""Boxes computed from pictures: where they must be, and what is said when the pictures are missing."""

from __future__ import annotations

import numpy as np
import pytest
from fusionkit_real_small import boxes, photographs
from fusionkit_real_small.photographs import NAMES, Photographs
from fusionkit_real_small.specs import PhotographsConfig

from fusionkit.errors import DataError
from fusionkit.plugin import Box, Point


@pytest.fixture(scope="module")
def dataset(pictures: None) -> Photographs:
    return Photographs(PhotographsConfig())


def test_there_are_24_coins_in_four_rows_of_six(dataset: Photographs) -> None:
    found = [thing.box for thing in dataset[0].objects]
    assert len(found) == 24
    for start in range(0, 24, 6):
        row = found[start : start + 6]
        assert [box.x0 for box in row] == sorted(box.x0 for box in row)
    for box in found:
        width, height = box.x1 - box.x0, box.y1 - box.y0
        assert 30 <= min(width, height) <= max(width, height) <= 75, box
        assert 0.8 <= width / height <= 1.25, box  # coins are round
    assert dataset[0].turns[0].answer == ("24",)


def test_coins_do_not_overlap(dataset: Photographs) -> None:
    covered = np.zeros((303, 384), dtype=int)
    for thing in dataset[0].objects:
        box = thing.box
        covered[int(box.y0) + 4 : int(box.y1) - 4, int(box.x0) + 4 : int(box.x1) - 4] += 1
    assert covered.max() == 1


def test_the_face_is_where_it_is(dataset: Photographs) -> None:
    (thing,) = dataset[NAMES.index("astronaut")].objects
    box = thing.box
    for eye in (Point(204, 112), Point(238, 112)):
        assert box.x0 < eye.x < box.x1
        assert box.y0 < eye.y < box.y1
    assert box.x1 - box.x0 < 130


def test_the_horse_is_what_is_dark(dataset: Photographs) -> None:
    (thing,) = dataset[NAMES.index("horse")].objects
    assert thing.box == Box(18, 9, 389, 313)


def test_a_box_is_the_extent_of_the_pixels() -> None:
    picture = np.full((20, 30), 255, dtype=np.uint8)
    picture[5:9, 11:25] = 0
    assert boxes.silhouette(picture) == Box(11, 5, 25, 9)


def test_missing_pictures_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photographs.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="scikit-image is not installed; run: pip install scikit-image"):
        Photographs(PhotographsConfig())
