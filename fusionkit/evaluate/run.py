"""Score a model on the data its recipe names, one set of scores per entry of `evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fusionkit.data.mixture import dataset_length
from fusionkit.errors import UsageError
from fusionkit.model.answer import answer
from fusionkit.model.modeling import FusionVLM
from fusionkit.model.parts import build_object
from fusionkit.model.processing import FusionProcessor
from fusionkit.recipe import Evaluate, Recipe
from fusionkit.sample import Prediction, Sample, Turn

Answered = tuple[Sample, Turn, Prediction]


@dataclass(frozen=True, slots=True)
class Scores:
    """One entry's results: `values[metric]` has `count` and the metric's numbers; `answers` keeps every turn."""

    name: str
    values: dict[str, dict[str, float]]
    answers: list[Answered] = field(repr=False)


def evaluate(
    model: FusionVLM,
    processor: FusionProcessor,
    recipe: Recipe,
    *,
    samples: int | None = None,
    shuffle_pictures: bool = False,
    batch_size: int = 32,
    max_new_tokens: int = 32,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> list[Scores]:
    """Greedy answers to all questions of each entry of `recipe.evaluate`, scored by its metrics.

    `samples` bounds the pictures per entry. `shuffle_pictures` shows each question the picture of another sample: the
    negative control, whose scores say what the text alone gives. Raises UsageError when the recipe has no `evaluate`.
    """
    if not recipe.evaluate:
        raise UsageError(
            f"recipe '{recipe.name}' has no `evaluate` section; add one: `evaluate: [{{metric: box_accuracy, data: {{...}}}}]`"
        )
    results = []
    for entry in recipe.evaluate:
        dataset = build_object("datasets", entry.data)
        size = dataset_length(dataset)
        if size is None and samples is None:
            raise UsageError(f"evaluate: data `{entry.data.type}` does not end; give it `samples`, or pass --samples")
        count = min(value for value in (size, samples) if value is not None)
        metrics = {config.type: build_object("metrics", config) for config in entry.metrics}
        answers: list[Answered] = []
        for start in range(0, count, batch_size):
            batch = list(_read(dataset, start, min(count, start + batch_size), count, shuffle_pictures))
            for sample, turn, prediction in answer(model, processor, batch, max_new_tokens=max_new_tokens):
                answers.append((sample, turn, prediction))
                for metric in metrics.values():
                    metric.update(prediction, turn, sample)
            if on_progress is not None:
                on_progress(label(entry), min(count, start + batch_size), count)
        results.append(Scores(label(entry), {name: metric.compute() for name, metric in metrics.items()}, answers))
    return results


def label(entry: Evaluate) -> str:
    """The name of an entry: its own, or its dataset's."""
    return entry.name or entry.data.type


def _read(dataset: Any, start: int, stop: int, count: int, shuffle_pictures: bool) -> Iterator[Sample]:
    for index in range(start, stop):
        sample: Sample = dataset[index]
        if shuffle_pictures:
            other: Sample = dataset[(index + count // 2) % count]
            sample = replace(sample, open_image=other.open_image)
        yield sample


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
