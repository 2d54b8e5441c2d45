"""What an evaluation gives: scores by metric, and every answer. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fusionkit.sample import Prediction, Sample, Turn

Answered = tuple[Sample, Turn, Prediction]


@dataclass(frozen=True, slots=True)
class Scores:
    """One entry's results: `values[metric]` has `count` and the metric's numbers; `answers` keeps every turn.

    `parts[tag]` has the same for the turns with that tag, `metrics` what computed the values. `without` is the stream
    that was dropped, "" if none was; then `changes[metric]` compares with the whole model on the same questions: value,
    low and high, dropped minus whole.
    """

    name: str
    values: dict[str, dict[str, float]]
    answers: list[Answered] = field(repr=False)
    parts: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    without: str = ""
    changes: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict, repr=False)


def worst_and_best(answers: Sequence[Answered], number: int) -> tuple[list[Answered], list[Answered]]:
    """Box questions with the lowest and the highest IoU, `number` of each."""
    boxed = [item for item in answers if item[1].boxes and item[0].open_image is not None]
    ranked = sorted(boxed, key=lambda item: overlap(item[1], item[2]))
    return ranked[:number], ranked[::-1][:number]


def overlap(turn: Turn, prediction: Prediction) -> float:
    """IoU of the first true and the first predicted box; 0 without one."""
    if not turn.boxes or not prediction.boxes:
        return 0.0
    return turn.boxes[0].iou(prediction.boxes[0])
