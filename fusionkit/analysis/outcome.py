"""What every analysis gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Progress = Callable[[str, int, int], None]
"""Called as progress(what is done, how much of it, of how much)."""


def silent(what: str, done: int, total: int) -> None:
    """Progress for nobody."""


@dataclass(frozen=True, slots=True)
class Frame:
    """How an analysis runs: where its files go, on which device, how many pictures at a time."""

    output: Path
    device: str = "cpu"
    batch: int = 8
    fresh: bool = False
    progress: Progress = silent


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of numbers with a heading: printed on a terminal, sortable in the page."""

    title: str
    rows: Sequence[Mapping[str, object]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """`data` is the JSON report; `files` by name inside the output folder (a mapping is written as
    JSON); `lines` the result in words."""

    data: Mapping[str, Any]
    files: Mapping[str, str | bytes | Mapping[str, Any]]
    lines: Sequence[str] = ()
    tables: Sequence[Table] = field(default_factory=tuple)
    fragment: str = ""
