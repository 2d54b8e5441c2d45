"""Metrics: definitions, edge cases, merging."""

from __future__ import annotations

import json

import pytest

from fusionkit.blocks.metrics.boxes import BoxAccuracy, MeanIou
from fusionkit.blocks.metrics.points import PointAccuracy
from fusionkit.blocks.metrics.specs import (
    BoxAccuracyConfig,
    CountAccuracyConfig,
    ExactMatchConfig,
    MeanIouConfig,
    PointAccuracyConfig,
)
from fusionkit.blocks.metrics.tally import Tally
from fusionkit.blocks.metrics.text import CountAccuracy, ExactMatch, read_count
from fusionkit.errors import DataError, UsageError
from fusionkit.geometry import Box, Point, Size
from fusionkit.sample import Prediction, Provenance, Sample, SceneObject, Turn

TRUE = Box(0, 0, 10, 10)
HALF = Box(0, 0, 10, 5)  # IoU with TRUE exactly 0.5
FAR = Box(50, 50, 60, 60)
SIZE = Size(100, 40)
OBJECTS = (SceneObject(Box(10, 10, 30, 30)), SceneObject(Box(0, 0, 60, 60)))


def sample(turn: Turn, size: Size | None = SIZE) -> Sample:
    return Sample(None, size, (turn,), Provenance("test", 3), OBJECTS)


def scored(metric: Tally, turn: Turn, prediction: Prediction, size: Size | None = SIZE) -> float:
    metric.update(prediction, turn, sample(turn, size))
    return metric.compute()[metric.name]


def boxes(*found: Box) -> Prediction:
    return Prediction("", boxes=found)


@pytest.mark.parametrize(
    ("found", "wanted", "accuracy", "iou"),
    [
        ([TRUE], [TRUE], 1, 1),
        ([HALF], [TRUE], 1, 0.5),  # the threshold itself counts
        ([Box(0, 0, 10, 4.99)], [TRUE], 0, 0.499),
        ([FAR], [TRUE], 0, 0),
        ([], [TRUE], 0, 0),  # nothing found is 0, not skipped
        ([TRUE, FAR], [TRUE], 0.5, 0.5),  # one too many
        ([TRUE, TRUE], [TRUE], 0.5, 0.5),  # said twice is one too many
        ([FAR, TRUE], [TRUE, FAR], 1, 1),  # order is free
        ([HALF], [TRUE, FAR], 0.5, 0.25),  # one missing
        ([HALF, TRUE], [TRUE, FAR], 0.5, 0.5),  # a true box is matched once, by the best
        ([Box(3, 3, 3, 3)], [TRUE], 0, 0),
    ],
)
def test_boxes(found: list[Box], wanted: list[Box], accuracy: float, iou: float) -> None:
    turn = Turn("q", tuple(wanted), "box")
    assert scored(BoxAccuracy(BoxAccuracyConfig()), turn, boxes(*found)) == pytest.approx(accuracy)
    assert scored(MeanIou(MeanIouConfig()), turn, boxes(*found)) == pytest.approx(iou)


def test_the_threshold_and_its_border_are_settings() -> None:
    turn = Turn("q", (TRUE,), "box")
    assert scored(BoxAccuracy(BoxAccuracyConfig(threshold=0.51)), turn, boxes(HALF)) == 0
    assert scored(BoxAccuracy(BoxAccuracyConfig(border="missed")), turn, boxes(HALF)) == 0
    assert scored(BoxAccuracy(BoxAccuracyConfig(border="missed")), turn, boxes(Box(0, 0, 10, 5.01))) == 1


def test_quirks_of_the_released_code_are_settings() -> None:
    turn = Turn("q", (TRUE,), "box")
    for found, first in (([TRUE, FAR], 1), ([FAR, TRUE], 0)):
        assert scored(BoxAccuracy(BoxAccuracyConfig(boxes="first")), turn, boxes(*found)) == first
        assert scored(MeanIou(MeanIouConfig(boxes="first")), turn, boxes(*found)) == first
    assert scored(MeanIou(MeanIouConfig(without_box=0.5)), turn, Prediction("no box")) == 0.5


def test_every_count_may_weigh_the_same() -> None:
    metric = CountAccuracy(CountAccuracyConfig(average="counts"))
    for answer in ("1", "1", "2"):  # two of three right for one, none for five
        turn = Turn("q", ("1",), "count")
        metric.update(Prediction(answer), turn, sample(turn))
    turn = Turn("q", ("5",), "count")
    metric.update(Prediction("4"), turn, sample(turn))
    assert metric.compute()["count_accuracy"] == pytest.approx((2 / 3 + 0) / 2)


@pytest.mark.parametrize(
    ("config", "found", "expected"),
    [
        (PointAccuracyConfig(), [Point(25, 20)], 1),  # 5 px = 5 % of the larger side, 100
        (PointAccuracyConfig(), [Point(20, 25)], 1),  # the larger side counts in both directions
        (PointAccuracyConfig(), [Point(25.01, 20)], 0),
        (PointAccuracyConfig(), [Point(24, 24)], 0),  # Euclidean distance 5.66
        (PointAccuracyConfig(tolerance=0.06), [Point(24, 24)], 1),
        (PointAccuracyConfig(), [], 0),
        (PointAccuracyConfig(), [Point(20, 20), Point(90, 20)], 0.5),
        (PointAccuracyConfig(within="pixels", tolerance=3), [Point(23, 20)], 1),
        (PointAccuracyConfig(within="pixels", tolerance=3), [Point(23.1, 20)], 0),
        (PointAccuracyConfig(within="box"), [Point(29, 11)], 1),
        (PointAccuracyConfig(within="box"), [Point(31, 20)], 0),  # in the larger object, not the one pointed at
    ],
)
def test_points(config: PointAccuracyConfig, found: list[Point], expected: float) -> None:
    turn = Turn("q", (Point(20, 20),), "point")
    assert scored(PointAccuracy(config), turn, Prediction("", points=tuple(found))) == expected


def test_points_are_matched_with_the_nearest() -> None:
    turn = Turn("q", (Point(20, 20), Point(24, 20)), "point")
    found = Prediction("", points=(Point(24, 21), Point(20, 21)))
    assert scored(PointAccuracy(PointAccuracyConfig(within="pixels", tolerance=1)), turn, found) == 1


def test_points_say_what_they_lack() -> None:
    turn = Turn("q", (Point(99, 39),), "point")
    found = Prediction("", points=(Point(1, 1),))
    with pytest.raises(
        DataError, match=r"test:3: no annotated object at the true point \(99, 39\).*use within: fraction"
    ):
        scored(PointAccuracy(PointAccuracyConfig(within="box")), turn, found)
    with pytest.raises(DataError, match=r"test:3: no picture size .* use within: pixels"):
        scored(PointAccuracy(PointAccuracyConfig()), turn, found, None)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3", 3),
        ("There are 12 of them.", 12),
        ("None", 0),
        ("there are none", 0),
        ("No circles", 0),
        ("no, there are three", 3),
        ("2 on the left and 3 on the right, a total of 5.", 5),
        ("1,234 birds", 1234),
        ("twenty", 20),
        ("zero", 0),
        ("", None),
        ("many", None),
        ("3.5", None),
        ("100-200", None),
        ("x3", None),
        ("nonetheless", None),
        (5000 * "9", None),
    ],
)
def test_reading_a_count(text: str, number: int | None) -> None:
    assert read_count(text) == number


@pytest.mark.parametrize(
    ("text", "expected"), [("3", 1), ("three", 1), ("there are 3", 1), ("4", 0), ("", 0), ("lots", 0)]
)
def test_counts(text: str, expected: float) -> None:
    assert scored(CountAccuracy(CountAccuracyConfig()), Turn("q", ("3",), "count"), Prediction(text)) == expected


def test_none_is_the_right_count_for_zero() -> None:
    assert scored(CountAccuracy(CountAccuracyConfig()), Turn("q", ("0",), "count"), Prediction("None.")) == 1


def test_a_count_without_a_true_number_is_named() -> None:
    with pytest.raises(DataError, match="test:3: the answer to 'how many' is 'some', expected a number"):
        scored(CountAccuracy(CountAccuracyConfig()), Turn("how many", ("some",), "count"), Prediction("3"))


@pytest.mark.parametrize(
    ("text", "expected"), [("red circle, blue cross", 1), (" Red  circle, BLUE cross. ", 1), ("red circle", 0), ("", 0)]
)
def test_exact_match(text: str, expected: float) -> None:
    turn = Turn("q", ("red circle, blue cross",), "describe")
    assert scored(ExactMatch(ExactMatchConfig()), turn, Prediction(text)) == expected


@pytest.mark.parametrize(
    ("metric", "turn"),
    [
        (BoxAccuracy(BoxAccuracyConfig()), Turn("q", (Point(1, 1),), "point")),
        (MeanIou(MeanIouConfig()), Turn("q", ("3",), "count")),
        (PointAccuracy(PointAccuracyConfig()), Turn("q", (TRUE,), "box")),
        (CountAccuracy(CountAccuracyConfig()), Turn("q", ("3",), "free")),
        (ExactMatch(ExactMatchConfig()), Turn("q", ("here: ", TRUE), "box")),
    ],
    ids=lambda value: value.name if isinstance(value, Tally) else "",
)
def test_other_kinds_are_skipped_and_nothing_scored_is_not_zero(metric: Tally, turn: Turn) -> None:
    metric.update(Prediction("3", (TRUE,), (Point(1, 1),)), turn, sample(turn))
    assert metric.compute() == {"count": 0}


def test_malformed_share_and_merging() -> None:
    turn = Turn("q", (TRUE,), "box")
    left, right = BoxAccuracy(BoxAccuracyConfig()), BoxAccuracy(BoxAccuracyConfig())
    left.update(boxes(TRUE), turn, sample(turn))
    right.update(boxes(FAR), turn, sample(turn))
    right.update(Prediction("<BOX>", malformed=("<BOX>",)), turn, sample(turn))
    right.update(boxes(TRUE), turn, sample(turn))
    left.merge(right)
    found = left.compute()
    assert (found["box_accuracy"], found["count"], found["malformed"]) == (0.5, 4, 0.25)
    assert json.loads(json.dumps(left.compute())) == left.compute()


def test_merging_another_metric_is_refused() -> None:
    with pytest.raises(UsageError, match=r"cannot merge mean_iou\(0 answers\) into box_accuracy\(0 answers\)"):
        BoxAccuracy(BoxAccuracyConfig()).merge(MeanIou(MeanIouConfig()))  # type: ignore[arg-type]
