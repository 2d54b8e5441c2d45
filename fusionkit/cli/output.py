"""What verbs print with: results on stdout, the rest on stderr. Standard library only, so that `list` stays fast."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Any, TextIO

BOLD, RESET = "\x1b[1m", "\x1b[0m"


def emit(text: str = "") -> None:
    """Write one line of the result to stdout."""
    sys.stdout.write(text + "\n")


def emit_json(data: Any) -> None:
    """Write the result as JSON to stdout.

    Takes what JSON takes, and mappings, dataclasses, pydantic models, paths, tuples and sets. JSON knows no NaN or
    infinity: such a number becomes null.
    """
    sys.stdout.write(json.dumps(_plain(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def note(message: str) -> None:
    """Write a diagnostic to stderr, where it does not mix with the result."""
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


def progress() -> Callable[[str], None]:
    """What tells how far a long task is, on stderr; in a pipe nobody waits for it."""
    return note if sys.stderr.isatty() else _be_silent


def _be_silent(message: str) -> None:
    """Say nothing."""


def heading(text: str) -> None:
    """Write a line to stdout that stands out on a terminal."""
    emit(f"{BOLD}{text}{RESET}" if is_fancy(sys.stdout) else text)


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], *, right: Set[str] = frozenset()) -> None:
    """Write aligned columns to stdout; columns named in `right` are aligned to the right.

    On a terminal the header is bold and lines are cut at its width; in a pipe nothing is cut.
    """
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(text) for text in column) for column in zip(headers, *texts, strict=True)]
    limit = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for number, row in enumerate([list(headers), *texts]):
        cells = [
            cell.rjust(width) if header in right else cell.ljust(width)
            for header, cell, width in zip(headers, row, widths, strict=True)
        ]
        line = "  ".join(cells).rstrip()
        if limit is not None and len(line) > limit:
            line = line[: limit - 1] + "…"
        if number == 0:
            heading(line)
        else:
            emit(line)


def is_fancy(stream: TextIO) -> bool:
    """Whether to use colour there: a terminal, and NO_COLOR not set."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


Rounds = Callable[[str, int, int], None]
"""Told what is under way, how much of it is done, and of how much."""


@contextmanager
def progress_bar(otherwise: Rounds) -> Iterator[Rounds]:
    """A bar on a terminal; `otherwise` is told where stderr is none."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield otherwise
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("start")
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


def watching(what: str) -> Callable[[Iterable[int]], Iterable[int]]:
    """What shows a progress bar on stderr while it hands numbers on; in a pipe nobody waits for it."""

    def watch(numbers: Iterable[int]) -> Iterable[int]:
        if not sys.stderr.isatty():
            return numbers
        from rich.console import Console
        from rich.progress import track

        return track(numbers, what, console=Console(stderr=True), transient=True)

    return watch


def _plain(value: Any) -> Any:
    """The value in JSON's own types."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Set):
        return sorted((_plain(item) for item in value), key=str)
    if isinstance(value, Iterable) and not hasattr(value, "model_dump"):
        return [_plain(item) for item in value]
    if isinstance(value, PurePath):
        return str(value)
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} has no JSON form")
