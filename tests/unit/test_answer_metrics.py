"""Metrics of short answers and of points: definitions, quirks that are options, agreement with the released code."""

from __future__ import annotations

import itertools
import json
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from fusionkit import registry
from fusionkit.blocks.metrics.answers import edit_distance, final_answer, read_number
from fusionkit.blocks.metrics.assignment import cheapest
from fusionkit.blocks.metrics.specs import PointAccuracyConfig
from fusionkit.blocks.metrics.vqa_words import vqa_normalised
from fusionkit.errors import DataError
from fusionkit.geometry import Box, Mask, Point, Size
from fusionkit.sample import Prediction, Provenance, Sample, SceneObject, Turn

GOLDEN = json.loads((Path(__file__).parents[1] / "parity" / "goldens" / "metrics_dev.json").read_text())


def make(name: str, **config: Any) -> Any:
    spec = registry.spec("metrics", name)
    return registry.factory(spec)(spec.config(**config), None)


def scores(
    name: str, prediction: Prediction, turn: Turn, objects: tuple[SceneObject, ...] = (), **config: Any
) -> dict[str, float]:
    metric = make(name, **config)
    metric.update(prediction, turn, Sample(None, Size(640, 480), (turn,), Provenance("test", 1), objects))
    result: dict[str, float] = metric.compute()
    return result


def text_score(name: str, text: str, *answers: str, **config: Any) -> float:
    turn = Turn("q", ("|".join(answers),))
    return scores(name, Prediction(text), turn, separator="|", **config)[name]


# The released code reads these otherwise, as its faults list says: separators, currencies and a true zero.
OTHERWISE = {("0.0", "0"), ("$5", "5"), ("1,000", "1000")}


@pytest.mark.parametrize("case", GOLDEN["relaxed_correctness"], ids=lambda case: case["prediction"][:12])
def test_relaxed_correctness_agrees_with_the_released_code(case: dict[str, Any]) -> None:
    name, answers = "relaxed_correctness", case["answers"]
    assert text_score(name, case["prediction"], *answers, numbers="released") == case["score"]
    ours = text_score(name, case["prediction"], *answers)
    assert ours == (1.0 if (case["prediction"], answers[0]) in OTHERWISE else case["score"])


@pytest.mark.parametrize(("golden", "name"), [("em", "answer_match"), ("ansl", "anls"), ("vqa_score", "vqa_score")])
def test_answers_agree_with_the_released_code(golden: str, name: str) -> None:
    for case in GOLDEN[golden]:
        assert text_score(name, case["prediction"], *case["answers"]) == pytest.approx(case["score"], abs=1e-6), case


# The released code wants nothing but the tag in an answer, and loses points on the right edge.
FAULTS = {5: (1.0, 1.0, 1.0), 6: (1.0, 1.0, 1.0)}


@pytest.mark.parametrize("number", range(len(GOLDEN["pointing"])))
def test_pointing_agrees_with_the_released_code(number: int) -> None:
    case = GOLDEN["pointing"][number]
    molmo = registry.spec("box_tokenizers", "molmo_points")
    parsed = registry.factory(molmo)(molmo.config(), None).parse(case["prediction"], Size(*case["image_wh"]))
    turn = Turn("q", tuple(Point(x, y) for x, y in case["gt_points"]), "point")
    objects = tuple(SceneObject(Box(*box)) for box in case["mask_boxes"])
    found = scores("pointing", Prediction("", points=parsed.points), turn, objects, within="box")
    expected = FAULTS.get(number, (case["precision"], case["recall"], case["f1"]))
    assert (found["precision"], found["recall"], found["pointing"]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("number", range(len(GOLDEN["pointing"])))
def test_pointing_within_masks_agrees_with_the_released_code(number: int) -> None:
    """The released evaluator's own rule: a matched point counts inside the mask of its true point."""
    case = GOLDEN["pointing"][number]
    size = Size(*case["image_wh"])
    molmo = registry.spec("box_tokenizers", "molmo_points")
    parsed = registry.factory(molmo)(molmo.config(), None).parse(case["prediction"], size)
    turn = Turn("q", tuple(Point(x, y) for x, y in case["gt_points"]), "point")
    objects = tuple(SceneObject(Box(*box), mask=filled(Box(*box), size)) for box in case["mask_boxes"])
    found = scores("pointing", Prediction("", points=parsed.points), turn, objects, within="mask")
    expected = FAULTS.get(number, (case["precision"], case["recall"], case["f1"]))
    assert (found["precision"], found["recall"], found["pointing"]) == pytest.approx(expected, abs=1e-6)


def filled(box: Box, size: Size) -> Mask:
    """The mask of all pixels in a box."""
    x0, y0, x1, y1 = (int(value) for value in (box.x0, box.y0, box.x1, box.y1))
    inside = [x1 - x0, size.width - x1 + x0] * (y1 - y0 - 1) + [x1 - x0]
    before = y0 * size.width + x0
    return Mask(size, (before, *inside, size.width * size.height - before - sum(inside)))


def test_masks() -> None:
    size = Size(4, 3)
    mask = filled(Box(1, 1, 3, 3), size)
    assert mask == Mask.of_rows([[False] * 4, [False, True, True, False], [False, True, True, False]])
    inside = {(x, y) for x in range(4) for y in range(3) if mask.contains(Point(x + 0.5, y + 0.5))}
    assert inside == {(1, 1), (2, 1), (1, 2), (2, 2)}
    assert mask.contains(Point(1, 3))  # the bottom edge belongs to the last row
    assert not mask.contains(Point(4, 3))
    assert not any(mask.contains(Point(x, y)) for x, y in ((-0.1, 1), (1, -0.1), (4.1, 1), (1, 3.1)))
    assert Mask.of_rows([[True, True]]).runs == (0, 2)
    with pytest.raises(DataError, match="mask: runs of 3 pixels, expected those of a 4x3 picture"):
        Mask(size, (1, 2))
    with pytest.raises(DataError, match="mask: expected rows of truth values, all of one length"):
        Mask.of_rows([])


def test_pointing_says_when_masks_are_missing() -> None:
    turn = Turn("q", (Point(9, 9), Point(3, 3)), "point")
    thing = SceneObject(Box(0, 0, 9, 9), mask=filled(Box(0, 0, 9, 9), Size(640, 480)))
    with pytest.raises(DataError, match=r"test:1: 1 masks for 2 true points; pointing within: mask needs an object"):
        scores("pointing", Prediction(""), turn, (thing, SceneObject(Box(0, 0, 5, 5))), within="mask")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1,234.5", Fraction(2469, 2)),
        ("1,23", None),  # no thousands
        ("12 %", Fraction(12, 100)),
        ("-$5", Fraction(-5)),
        ("€ 1,000,000", Fraction(1000000)),
        (".5", Fraction(1, 2)),
        ("1e3", Fraction(1000)),
        ("ten", None),
        ("5 cats", None),
        ("nan", None),
        ("", None),
        ("9" * 50, None),
    ],
)
def test_reading_numbers(text: str, number: Fraction | None) -> None:
    assert read_number(text) == number


def test_relaxed_correctness_is_exact_at_the_border() -> None:
    assert text_score("relaxed_correctness", "0.105", "0.1") == 1  # 5 % exactly; floats would say 0.0500...01
    assert text_score("relaxed_correctness", "0.1051", "0.1") == 0
    assert text_score("relaxed_correctness", "110", "100", tolerance=0.1) == 1
    assert text_score("relaxed_correctness", "0.01", "0") == 0


@pytest.mark.parametrize(("one", "other", "distance"), [("", "abc", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2)])
def test_edit_distance(one: str, other: str, distance: int) -> None:
    assert edit_distance(one, other) == edit_distance(other, one) == distance


def test_anls_is_zero_up_to_the_threshold_and_takes_the_best_answer() -> None:
    assert text_score("anls", "abxx", "abcd") == 0  # similarity one half
    assert text_score("anls", "abcx", "abcd") == 0.75
    assert text_score("anls", "abcx", "zzzz", "abcd") == 0.75
    assert text_score("anls", "abxx", "abcd", threshold=0.4) == 0.5


def test_exact_match_variants() -> None:
    assert text_score("answer_match", "Blue", "blue") == 1
    assert text_score("answer_match", "Blue", "blue", ignore="exact") == 0
    assert text_score("answer_match", "Blue.", "red", "blue", ignore="punctuation") == 1
    assert text_score("answer_match", "Blue.", "blue") == 0


def test_final_answers_and_vqa_words() -> None:
    assert final_answer("I think.\nAnswer:  a  cat ") == "a cat"
    assert final_answer("no\nyes\nyes") == "yes"
    assert final_answer("\n") == ""
    assert vqa_normalised("The two-door, 1,000.5 don't!") == "2 door 1000.5 dont"
    assert vqa_normalised("None.") == "0"


def test_the_matching_is_the_best_of_all() -> None:
    draw = random.Random(0)
    for rows, columns in itertools.product(range(1, 5), repeat=2):
        for _ in range(8):
            cost = [[draw.choice([draw.random(), 1.0]) for _ in range(columns)] for _ in range(rows)]
            pairs = cheapest(cost)
            assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == min(rows, columns) == len(pairs)
            small, large = sorted((rows, columns))
            best = min(
                sum(cost[i][j] if rows <= columns else cost[j][i] for i, j in zip(range(small), order, strict=True))
                for order in itertools.permutations(range(large), small)
            )
            assert sum(cost[i][j] for i, j in pairs) == pytest.approx(best)
    assert cheapest([]) == cheapest([[]]) == []


def test_pointing_within_pixels_matches_by_total_distance() -> None:
    # Nearest first would take (10, 0) for the truth at 12 and leave 0 with 16; the best total pairs 0-10 and 12-16.
    turn = Turn("q", (Point(0, 0), Point(12, 0)), "point")
    found = Prediction("", points=(Point(10, 0), Point(16, 0)))
    result = scores("pointing", found, turn, tolerance=4.0)
    assert (result["precision"], result["recall"], result["pointing"]) == (0.5, 0.5, 0.5)
    assert (
        scores("point_accuracy", found, turn, within="pixels", tolerance=4.0, matching="optimal")["point_accuracy"]
        == 0.5
    )
    edge = Turn("q", (Point(100, 100),), "point")
    for tolerance, expected in ((3.0, 0), (5.0, 1)):
        dot = Prediction("", points=(Point(103, 103),))  # 4.24 pixels off
        assert scores("pointing", dot, edge, tolerance=tolerance)["pointing"] == expected


def test_pointing_without_points() -> None:
    none, dot = Turn("q", ("There are none.",), "point"), Prediction("", points=(Point(1, 1),))
    assert scores("pointing", Prediction("none"), none)["pointing"] == 1
    assert scores("pointing", dot, none)["pointing"] == 0
    with pytest.raises(DataError, match=r"test:1: no annotated object at the true point \(9, 9\)"):
        scores("pointing", dot, Turn("q", (Point(9, 9),), "point"), within="box")


def test_options_of_point_accuracy() -> None:
    turn = Turn("q", (Point(0, 0), Point(100, 0)), "point")
    one = Prediction("", points=(Point(4, 0),))
    pixels = {"within": "pixels", "tolerance": 5.0}
    assert scores("point_accuracy", one, turn, **pixels)["point_accuracy"] == 0.5
    assert scores("point_accuracy", one, turn, denominator="answer", **pixels)["point_accuracy"] == 1
    assert scores("point_accuracy", one, turn, denominator="truth", **pixels)["point_accuracy"] == 0.5
    # the picture is 640 wide: 4 pixels are 2 of a frame of 320, 8 of one of 1280
    assert scores("point_accuracy", one, turn, frame=1280, **pixels)["point_accuracy"] == 0
    assert scores("point_accuracy", one, turn, frame=320, within="pixels", tolerance=2.0)["point_accuracy"] == 0.5
    assert scores("point_accuracy", Prediction(""), turn, denominator="answer", **pixels)["point_accuracy"] == 0
    with pytest.raises(ValidationError, match="only `within: pixels` counts pixels"):
        PointAccuracyConfig(frame=320)


@pytest.mark.parametrize(("text", "exact", "close"), [("3", 1, 1), ("four", 0, 1), ("5", 0, 0), ("many", 0, 0)])
def test_counts_within_one(text: str, exact: float, close: float) -> None:
    turn = Turn("q", ("3",), "count")
    assert scores("count_accuracy", Prediction(text), turn)["count_accuracy"] == exact
    assert scores("count_accuracy", Prediction(text), turn, within=1)["count_accuracy"] == close
    none = Turn("q", ("none",), "count")
    assert scores("count_accuracy", Prediction("1"), none, within=1)["count_accuracy"] == 1
