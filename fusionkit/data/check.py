"""Checking a JSONL file row by row before a training run meets what is wrong in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fusionkit.data.read import open_jsonl
from fusionkit.errors import DataError
from fusionkit.geometry import Size
from fusionkit.sample import Sample


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about one row: its line in the file, and what."""

    line: int
    message: str


@dataclass(slots=True)
class Report:
    """What a file holds and what is wrong with it.

    `broken` rows cannot be used. `outside` names boxes that reach over the picture's edge: they are used, cut at it.
    `turns` counts kinds of answers; `smallest` and `largest` pictures are by area.
    """

    file: str
    rows: int
    usable: int = 0
    without_picture: int = 0
    turns: Counter[str] = field(default_factory=Counter)
    boxes: int = 0
    points: int = 0
    smallest: Size | None = None
    largest: Size | None = None
    broken: list[Finding] = field(default_factory=list)
    outside: list[Finding] = field(default_factory=list)
    chosen: list[int] = field(default_factory=list)
    """Indices of usable rows with a picture, evenly spread over the file, for a contact sheet."""


def check(path: str | Path, shown: int = 24, watch: Callable[[Iterable[int]], Iterable[int]] = iter) -> Report:
    """Read every row and decode every picture; what is wrong is collected, not raised.

    `watch` wraps the row numbers, for example with a progress bar; `shown` is the most that `chosen` may hold.
    Raises DataError only when the file as a whole cannot be used.
    """
    dataset = open_jsonl(path)
    report = Report(str(path), len(dataset))
    pictured: list[int] = []
    for index in watch(range(len(dataset))):
        where = dataset.rows.where(index)
        line = dataset.rows.line(index)
        try:
            sample = dataset[index]
            if sample.open_image is not None:
                sample.open_image()
        except DataError as error:
            report.broken.append(Finding(line, str(error).removeprefix(f"{where}: ")))
            continue
        if sample.open_image is None:
            report.without_picture += 1
        else:
            pictured.append(index)
        _count(report, sample)
        report.outside += [Finding(line, message) for message in boxes_outside(sample)]
    report.chosen = (
        [pictured[number * len(pictured) // shown] for number in range(shown)] if len(pictured) > shown else pictured
    )
    return report


def boxes_outside(sample: Sample) -> Iterator[str]:
    """Boxes that reach over the edge of the picture, in words."""
    if sample.size is None:
        return
    width, height = sample.size.width, sample.size.height
    for turn in sample.turns:
        for box in turn.boxes:
            over = max(-box.x0, -box.y0, box.x1 - width, box.y1 - height)
            if over > 0:
                corners = f"[{box.x0:g}, {box.y0:g}, {box.x1:g}, {box.y1:g}]"
                yield f"box {corners} reaches {over:g} px outside the {sample.size} picture"


def _count(report: Report, sample: Sample) -> None:
    report.usable += 1
    for turn in sample.turns:
        report.turns[turn.kind] += 1
        report.boxes += len(turn.boxes)
        report.points += len(turn.points)
    size = sample.size
    if size is None:
        return
    if report.smallest is None or _area(size) < _area(report.smallest):
        report.smallest = size
    if report.largest is None or _area(size) > _area(report.largest):
        report.largest = size


def _area(size: Size) -> int:
    return size.width * size.height
