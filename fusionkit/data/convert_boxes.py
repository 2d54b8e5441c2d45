"""Boxes and points of JSONL files into and out of the texts of box tokenizers. Torch-free.

A row has a picture's `size` [width, height] in pixels, or an `image` file to measure; and `boxes` [x0, y0, x1, y1]
and `points` [x, y] in its pixels, each with a label at the end if it has one, or a `text`, or `conversations`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusionkit.blocks.datasets.rows import JsonLines, type_name
from fusionkit.data.short_blocks import make_block
from fusionkit.errors import DataError, FusionkitError, UsageError
from fusionkit.geometry import Box, Point, Size
from fusionkit.pictures import picture_size

Item = Box | Point
Row = dict[str, Any]


@dataclass
class Converted:
    """What a conversion met: rows and items, malformed pieces by line, and how far coordinates moved at most."""

    rows: int = 0
    items: int = 0
    malformed: list[tuple[int, str]] = field(default_factory=list)
    moved: float = 0.0
    bound: float = 0.0
    bound_size: Size | None = None


def make_tokenizer(text: str) -> Any:
    """A box tokenizer from its name and settings, as `coordinate_bins` or `coordinate_bins,bins=100`; see `make_block`."""
    return make_block("box_tokenizers", text)


def encode_row(row: Row, size: Size, to: Any, found: Converted) -> Row:
    """The row with `text` in the place of `boxes` and `points`."""
    items = read_items(row)
    found.items += len(items)
    _note_bound(found, to, size)
    return {
        **{key: value for key, value in row.items() if key not in ("boxes", "points")},
        "text": to.encode(items, size),
    }


def decode_row(row: Row, size: Size, source: Any, found: Converted, line: int, strict: bool) -> Row:
    """The row with the `boxes`, `points` and `malformed` pieces of its `text`."""
    parsed = source.parse(_text(row), size, strict=strict)
    found.items += len(parsed.boxes) + len(parsed.points)
    found.malformed += [(line, piece) for piece in parsed.malformed]
    return {
        **row,
        "boxes": [_listed((box.x0, box.y0, box.x1, box.y1), box.label) for box in parsed.boxes],
        "points": [_listed((point.x, point.y), point.label) for point in parsed.points],
        "malformed": list(parsed.malformed),
    }


def transcode_row(row: Row, size: Size, source: Any, to: Any, found: Converted, line: int, strict: bool) -> Row:
    """The row with every box and point in its `text` and in its answers written in another format, words kept."""

    def change(text: str) -> str:
        return _transcoded(text, size, source, to, found, line, strict)

    _note_bound(found, to, size)
    if "conversations" in row:
        turns = row["conversations"]
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            raise DataError("'conversations' must be a list of objects with 'from' and 'value'")
        answers = [
            turn | {"value": change(_text(turn, "value"))} if turn.get("from") in ("gpt", "assistant") else turn
            for turn in turns
        ]
        return row | {"conversations": answers} | ({"text": change(_text(row))} if "text" in row else {})
    return row | {"text": change(_text(row))}


def convert_file(path: Path, convert: Callable[[Row, Size, int], Row], rows: Converted, watch: Watch) -> Iterator[Row]:
    """Every row of a file converted; raises DataError naming file and line for the first that cannot be."""
    lines = JsonLines(path, "fusionkit boxes")
    for index in watch(range(len(lines))):
        row = lines.row(index)
        try:
            yield convert(row, read_size(row, path.parent), lines.line(index))
        except FusionkitError as error:
            raise DataError(f"{lines.where(index)}: {error}") from error
        rows.rows += 1


Watch = Callable[[Iterable[int]], Iterable[int]]


def read_size(row: Row, folder: Path) -> Size:
    """The picture's size: `size`, or that of the file `image` beside the data; raises DataError."""
    size = row.get("size")
    if size is None and isinstance(row.get("image"), str):
        return picture_size(folder / row["image"])
    if not (isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)):
        raise DataError(f"'size' must be [width, height] in pixels, or 'image' a picture file; got {json.dumps(size)}")
    return Size(*size)


def read_items(row: Row) -> list[Item]:
    """The boxes and then the points of a row; raises DataError."""
    if "boxes" not in row and "points" not in row:
        raise DataError("neither 'boxes' nor 'points' in the row")
    return [
        *(Box(x0, y0, x1, y1, label) for (x0, y0, x1, y1), label in _entries(row, "boxes", 4)),
        *(Point(x, y, label) for (x, y), label in _entries(row, "points", 2)),
    ]


def _entries(row: Row, key: str, count: int) -> Iterator[tuple[list[float], str]]:
    entries = row.get(key, [])
    if not isinstance(entries, list):
        raise DataError(f"'{key}' must be a list, got {type_name(entries)}")
    for number, entry in enumerate(entries):
        values: list[Any] = entry if isinstance(entry, list) else [None]
        label = values[count] if len(values) == count + 1 else ""
        numeric = all(type(value) in (int, float) and math.isfinite(value) for value in values[:count])
        if not numeric or not isinstance(label, str) or len(values) not in (count, count + 1):
            raise DataError(
                f"{key}[{number}] must be {count} numbers and perhaps a label, got {json.dumps(entry)[:80]}"
            )
        yield values[:count], label


def _text(row: Row, key: str = "text") -> str:
    text = row.get(key)
    if not isinstance(text, str):
        raise DataError(f"'{key}' must be text, got {type_name(text)}")
    return text


def _transcoded(text: str, size: Size, source: Any, to: Any, found: Converted, line: int, strict: bool) -> str:
    if not hasattr(source, "segments"):
        raise UsageError(f"{type(source).__name__} cannot keep the words around its boxes: it has no segments()")
    pieces = []
    for piece in source.segments(text, size, strict):
        if not isinstance(piece, tuple):
            if strip := str(piece).strip():
                found.malformed += [(line, strip)] if type(piece) is not str else []
            pieces.append(str(piece))
            continue
        written = to.encode(piece, size)
        found.items += len(piece)
        found.moved = max(found.moved, _moved(piece, to, size))
        pieces.append(written)
    return "".join(pieces)


def _moved(items: tuple[Item, ...], to: Any, size: Size) -> float:
    """How far the coordinates of items move at most by being written and read again, pixels."""
    worst = 0.0
    for item in items:
        parsed = to.parse(to.encode(item, size), size)
        again: Item = [*parsed.boxes, *parsed.points][0]
        names = ("x0", "y0", "x1", "y1") if isinstance(item, Box) else ("x", "y")
        worst = max(worst, *(abs(getattr(item, name) - getattr(again, name)) for name in names))
    return worst


def _note_bound(found: Converted, to: Any, size: Size) -> None:
    bound = max(to.tolerance(size))
    if bound > found.bound:
        found.bound, found.bound_size = bound, size


def _listed(numbers: tuple[float, ...], label: str) -> list[Any]:
    return [*numbers, label] if label else [*numbers]
