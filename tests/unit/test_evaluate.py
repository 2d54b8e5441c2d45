"""Evaluation: every question of every entry is asked once, scores are what the answers deserve, the page is whole."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

import fusionkit
from fusionkit.errors import DataError, UsageError
from fusionkit.evaluate import run as running
from fusionkit.evaluate.draw import annotate, describe, sheet
from fusionkit.evaluate.report import as_rows, write_report
from fusionkit.evaluate.scores import Scores
from fusionkit.geometry import Box, Point
from fusionkit.sample import Prediction, Sample, Turn

ENTRY = {
    "name": "unseen",
    "metrics": ["box_accuracy", "count_accuracy"],
    "data": {"type": "synthetic_scenes", "samples": 6},
}


def recipe(**changes: Any) -> Any:
    base = fusionkit.load_recipe("builtin:tiny").canonical()
    return fusionkit.load_recipe({**base, "evaluate": [ENTRY], **changes})


def oracle(
    _model: Any, _processor: Any, samples: Sequence[Sample], **_: Any
) -> Iterator[tuple[Sample, Turn, Prediction]]:
    """Answers everything truly, except that every second box is missed."""
    missed = True
    for sample in samples:
        for turn in sample.turns:
            missed = not missed if turn.boxes else missed
            boxes = (Box(0, 0, 1, 1),) if turn.boxes and missed else turn.boxes
            yield sample, turn, Prediction(turn.text, boxes, turn.points)


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> list[Scores]:
    monkeypatch.setattr(running, "answer", oracle)
    return running.evaluate(None, None, recipe(), batch_size=4)  # type: ignore[arg-type]


def test_scores_are_what_the_answers_deserve(results: list[Scores]) -> None:
    (scores,) = results
    boxes = [turn for _, turn, _ in scores.answers if turn.boxes]
    assert scores.name == "unseen"
    assert len(scores.answers) == 6 * 6
    assert scores.values["count_accuracy"]["count_accuracy"] == 1
    assert scores.values["box_accuracy"]["count"] == len(boxes)
    hits = -(-len(boxes) // 2)
    assert scores.values["box_accuracy"]["box_accuracy"] == pytest.approx(hits / len(boxes))


def test_rows_carry_intervals_and_missing_scores_stay_missing(results: list[Scores]) -> None:
    rows = {row["metric"]: row for row in as_rows(results)}
    assert rows["box_accuracy"]["low"] < rows["box_accuracy"]["value"] < rows["box_accuracy"]["high"]
    nothing = as_rows([Scores("empty", {"box_accuracy": {"count": 0}}, [])])[0]
    assert (nothing["value"], nothing["low"], nothing["high"]) == (None, None, None)


def test_shuffled_pictures_keep_the_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[bool, list[Sample]] = {True: [], False: []}
    for shuffled in seen:

        def keep(_m: Any, _p: Any, samples: Sequence[Sample], shuffled: bool = shuffled, **_: Any) -> Iterator[Any]:
            seen[shuffled] += samples
            return iter(())

        monkeypatch.setattr(running, "answer", keep)
        running.evaluate(None, None, recipe(), shuffle_pictures=shuffled)  # type: ignore[arg-type]
    for plain, other in zip(seen[False], seen[True], strict=True):
        assert plain.turns == other.turns
        assert plain.open_image is not None
        assert other.open_image is not None
        assert not np.array_equal(np.asarray(plain.open_image()), np.asarray(other.open_image()))


def test_the_report_is_whole_and_asks_nobody(results: list[Scores], tmp_path: Any) -> None:
    page = write_report(tmp_path / "report", "Scores", results, {"checkpoint": "x"}).read_text(encoding="utf-8")
    assert "http" not in page
    assert page.count('" src="data:image/png;base64,') == 8
    answers = [json.loads(line) for line in (tmp_path / "report" / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 36
    assert json.loads((tmp_path / "report" / "scores.json").read_text())["scores"] == as_rows(results)


def test_a_report_that_cannot_be_written_is_told(results: list[Scores], tmp_path: Any) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot write the report"):
        write_report(tmp_path / "file" / "report", "Scores", results, {})


def test_what_cannot_be_evaluated_is_told() -> None:
    with pytest.raises(UsageError, match="has no `evaluate` section"):
        running.evaluate(None, None, recipe(evaluate=[]))  # type: ignore[arg-type]
    endless = {"metrics": ["box_accuracy"], "data": {"type": "synthetic_scenes"}}
    with pytest.raises(UsageError, match="does not end; give it `samples`, or pass --samples"):
        running.evaluate(None, None, recipe(evaluate=[endless]))  # type: ignore[arg-type]


def test_annotations_are_drawn_where_they_belong() -> None:
    from PIL import Image

    picture = Image.new("RGB", (48, 48), "black")
    drawn = annotate(picture, "box it", Prediction("", (Box(12, 12, 36, 36),), (Point(24, 24),)), None)
    assert drawn.width == 384
    assert drawn.getpixel((12 * 8, 24 * 8)) == (255, 64, 64)
    assert drawn.getpixel((24 * 8, 24 * 8)) == (255, 64, 64)
    assert drawn.getpixel((4 * 8, 4 * 8)) == (0, 0, 0)
    assert sheet([drawn, drawn], columns=2).width > 2 * 384
    assert describe(Prediction("two")) == "two"
    assert describe(Prediction("", malformed=("<BOX>",))) == "malformed: <BOX>"
