"""Score a model on the data its recipe names, one set of scores per entry of `evaluate` (and split of its data)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch

from fusionkit.data.mixture import dataset_length
from fusionkit.errors import UsageError
from fusionkit.evaluate.scores import Answered, Scores
from fusionkit.model.answer import answer
from fusionkit.model.modeling import FusionVLM
from fusionkit.model.parts import build_object
from fusionkit.model.processing import FusionProcessor
from fusionkit.ops.tokens import Tokens
from fusionkit.plugin import BlockConfig
from fusionkit.recipe import Evaluate, Recipe
from fusionkit.sample import Sample

__all__ = ["Answerer", "Scores", "evaluate", "label", "score", "without_stream"]


class Answerer(Protocol):
    """Gives the answers to all turns of some samples, in order."""

    def __call__(self, samples: Sequence[Sample]) -> Iterable[Answered]: ...


def evaluate(
    model: FusionVLM,
    processor: FusionProcessor,
    recipe: Recipe,
    *,
    samples: int | None = None,
    shuffle_pictures: bool = False,
    drop: Sequence[str] = (),
    batch_size: int = 32,
    max_new_tokens: int = 32,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> list[Scores]:
    """Greedy answers to all questions of each entry of `recipe.evaluate`, scored by its metrics.

    `samples` bounds the pictures per entry. `shuffle_pictures` shows each question the picture of another sample: the
    negative control, whose scores say what the text alone gives. `drop` names streams: every entry is scored once more
    without each of them (see `without_stream`).

    Raises UsageError when the recipe has no `evaluate`, or the model no such stream.
    """

    def ask(samples: Sequence[Sample]) -> Iterable[Answered]:
        return answer(model, processor, samples, max_new_tokens=max_new_tokens)

    settings: dict[str, Any] = {
        "samples": samples,
        "shuffle_pictures": shuffle_pictures,
        "batch_size": batch_size,
        "on_progress": on_progress,
    }
    if unknown := [name for name in drop if name not in model.plan.streams]:
        raise UsageError(f"--drop {unknown[0]}: no such stream; the model has {', '.join(model.plan.streams)}")
    results = score(ask, recipe, **settings)
    whole = {scores.name: scores for scores in results}
    for stream in drop:
        with without_stream(model, stream):
            results += [_compared(scores, whole[scores.name], stream) for scores in score(ask, recipe, **settings)]
    return results


def score(
    ask: Answerer,
    recipe: Recipe,
    *,
    samples: int | None = None,
    shuffle_pictures: bool = False,
    batch_size: int = 32,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> list[Scores]:
    """As `evaluate`, for whatever answers. Raises UsageError when the recipe has no `evaluate`."""
    if not recipe.evaluate:
        raise UsageError(
            f"recipe '{recipe.name}' has no `evaluate` section; add one: `evaluate: [{{metric: box_accuracy, data: {{...}}}}]`"
        )
    results = []
    for entry in recipe.evaluate:
        for name, data in _splits(entry):
            dataset = build_object("datasets", data)
            size = dataset_length(dataset)
            if size is None and samples is None:
                raise UsageError(f"evaluate: data `{data.type}` does not end; give it `samples`, or pass --samples")
            count = min(value for value in (size, samples) if value is not None)
            metrics = _metrics(entry)
            parts: dict[str, dict[str, Any]] = {}
            answers: list[Answered] = []
            for start in range(0, count, batch_size):
                batch = list(_read(dataset, start, min(count, start + batch_size), count, shuffle_pictures))
                for sample, turn, prediction in ask(batch):
                    answers.append((sample, turn, prediction))
                    for tag in turn.tags:
                        parts.setdefault(tag, _metrics(entry))
                    for group in (metrics, *(parts[tag] for tag in turn.tags)):
                        for metric in group.values():
                            metric.update(prediction, turn, sample)
                if on_progress is not None:
                    on_progress(name, min(count, start + batch_size), count)
            tagged = {tag: _computed(group) for tag, group in sorted(parts.items())}
            results.append(Scores(name, _computed(metrics), answers, tagged, metrics=metrics))
    return results


def _metrics(entry: Evaluate) -> dict[str, Any]:
    return {config.type: build_object("metrics", config) for config in entry.metrics}


def _computed(metrics: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    return {name: metric.compute() for name, metric in metrics.items()}


def _splits(entry: Evaluate) -> list[tuple[str, BlockConfig]]:
    """The data of an entry, split by split where it has several."""
    splits = getattr(entry.data, "splits", None)
    if not splits or len(splits) < 2:
        return [(label(entry), entry.data)]
    return [
        (f"{label(entry)} {split}", entry.data.model_copy(update={"split": split, "splits": None})) for split in splits
    ]


def _compared(scores: Scores, whole: Scores, stream: str) -> Scores:
    changes = {}
    for name, metric in scores.metrics.items():
        if hasattr(metric, "difference") and scores.values[name]["count"]:
            found = metric.difference(whole.metrics[name])
            changes[name] = (found.value, found.low, found.high)
    return replace(scores, without=stream, changes=changes)


@contextmanager
def without_stream(model: FusionVLM, stream: str) -> Iterator[None]:
    """The model without what a stream saw: its tokens are zeros inside this context. Who helps where?"""

    def blank(_module: Any, _inputs: Any, tokens: Tokens) -> Tokens:
        return tokens.with_x(torch.zeros_like(tokens.x_BND))

    handle = model.streams[stream].register_forward_hook(blank)
    try:
        yield
    finally:
        handle.remove()


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
