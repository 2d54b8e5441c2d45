"""What every metric must do: count what it is asked about, merge, and put right answers above wrong ones."""

from __future__ import annotations

import math
from typing import Any

from fusionkit.plugin import BlockSite
from fusionkit.sample import Prediction, Sample, Turn
from fusionkit.testing import fakes
from fusionkit.testing.subjects import Subject, require

Answer = tuple[Prediction, Turn, Sample]


def check_merge_equals_all_at_once(subject: Subject) -> None:
    """Halves counted apart and merged give the scores of the whole, in either order."""
    answers = _answers()
    whole = _fed(subject, answers).compute()
    half = len(answers) // 3
    for first, second in ((answers[:half], answers[half:]), (answers[half:], answers[:half])):
        merged = _fed(subject, first)
        merged.merge(_fed(subject, second))
        _require_equal(merged.compute(), whole, "merged halves and the whole")


def check_compute_changes_nothing(subject: Subject) -> None:
    """compute() may be called twice, and says how many answers it is about."""
    metric = _fed(subject, _answers())
    first = metric.compute()
    _require_equal(metric.compute(), first, "compute() called twice")
    require("count" in first, f"compute() lacks 'count', it has {', '.join(first)}")
    require(all(math.isfinite(value) for value in first.values()), f"scores are not finite: {first}")
    require(first["count"] > 0, "none of the kinds box, point, count, describe, free is counted")


def check_nothing_counted(subject: Subject) -> None:
    """Without an answer the count is 0 and there is no crash."""
    require(_fed(subject, []).compute()["count"] == 0, "a metric that saw nothing counts something")


def check_right_beats_wrong(subject: Subject) -> None:
    """Perfect answers score at least as well as empty ones on every score, and better on one."""
    turns = [(turn, sample) for sample in fakes.samples() for turn in sample.turns]
    right = _fed(subject, [(fakes.perfect(turn), turn, sample) for turn, sample in turns]).compute()
    wrong = _fed(subject, [(Prediction(""), turn, sample) for turn, sample in turns]).compute()
    require(
        right["count"] == wrong["count"], f"empty answers are left out: {wrong['count']} of {right['count']} counted"
    )
    scores = [name for name in right if name in wrong and name != "count"]
    require(
        any(right[name] > wrong[name] for name in scores), f"perfect answers {right} are no better than empty {wrong}"
    )


METRIC_CHECKS = (
    check_merge_equals_all_at_once,
    check_compute_changes_nothing,
    check_nothing_counted,
    check_right_beats_wrong,
)


def _answers() -> list[Answer]:
    """Every third answer is empty, the others are right."""
    turns = [(turn, sample) for sample in fakes.samples() for turn in sample.turns]
    return [
        (Prediction("") if number % 3 == 0 else fakes.perfect(turn), turn, sample)
        for number, (turn, sample) in enumerate(turns)
    ]


def _fed(subject: Subject, answers: list[Answer]) -> Any:
    metric = subject.make(BlockSite(address="evaluate"))
    for prediction, turn, sample in answers:
        metric.update(prediction, turn, sample)
    return metric


def _require_equal(found: dict[str, float], expected: dict[str, float], what: str) -> None:
    require(found.keys() == expected.keys(), f"{what}: scores {list(found)} and {list(expected)}")
    for name, value in found.items():
        require(math.isclose(value, expected[name], rel_tol=1e-9, abs_tol=1e-12), f"{what}: {name} differs")
