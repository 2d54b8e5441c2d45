"""The questions of a dataset by name, so that answers from anywhere find what they answer. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from fusionkit.data.mixture import dataset_length
from fusionkit.errors import DataError, UsageError
from fusionkit.sample import Sample, Turn


def question_id(sample: Sample, turn: Turn) -> str:
    """What a question is called: its file's name, row and place in it, `refs(unc).p:12#0`; the same on every machine."""
    return _name(sample, next(number for number, each in enumerate(sample.turns) if each is turn))


def samples_of(dataset: Any, watch: Callable[[Iterable[int]], Iterable[int]] = iter) -> list[Sample]:
    """All samples of a dataset; `watch` sees their indices go by. Raises UsageError for one that does not end."""
    length = dataset_length(dataset)
    if length is None:
        raise UsageError(f"{type(dataset).__name__} does not end; give it `samples`, for example samples=100")
    return [dataset[index] for index in watch(range(length))]


def questions_of(samples: Iterable[Sample]) -> Iterator[tuple[str, Sample, Turn]]:
    """Every question with its name; raises DataError when two would be called the same."""
    seen: dict[str, str] = {}
    for sample in samples:
        for number, turn in enumerate(sample.turns):
            name = _name(sample, number)
            if name in seen:
                raise DataError(f"{sample.provenance} and {seen[name]} are both called {name}; score them apart")
            seen[name] = str(sample.provenance)
            yield name, sample, turn


def question_row(name: str, sample: Sample, turn: Turn) -> dict[str, Any]:
    """One question without its answer, as a line for whoever answers it."""
    size = None if sample.size is None else [sample.size.width, sample.size.height]
    return {"id": name, "image": sample.path or None, "size": size, "kind": turn.kind, "question": turn.question}


def _name(sample: Sample, place: int) -> str:
    source, row = Path(sample.provenance.source).name, sample.provenance.row
    return f"{source}#{place}" if row is None else f"{source}:{row}#{place}"
