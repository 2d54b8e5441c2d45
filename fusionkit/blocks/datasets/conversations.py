"""From a row of the JSONL format (see `jsonl`) to turns with boxes and points. Torch-free."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from fusionkit.blocks.datasets.rows import type_name
from fusionkit.errors import DataError
from fusionkit.geometry import Box, Point, Size
from fusionkit.plugin import IMAGE_TOKEN
from fusionkit.sample import Segment, Turn

_T = TypeVar("_T")

KEYS = ("image", "conversations", "boxes", "points", "id", "meta")
_PLACEHOLDER = re.compile(r"(<box>|<point>)")
_SPEAKERS = ("human", "gpt")


def turns_of(row: dict[str, Any], size: Size | None, where: str) -> tuple[Turn, ...]:
    """The turns of a row; raises DataError naming what is wrong in it."""
    unknown = sorted(set(row) - set(KEYS))
    if unknown:
        raise DataError(f"{where}: unknown key '{unknown[0]}'; expected {', '.join(KEYS)} (put your own under 'meta')")
    boxes = [_box(value, number, size, where) for number, value in enumerate(_list(row, "boxes", where))]
    points = [_point(value, number, size, where) for number, value in enumerate(_list(row, "points", where))]
    boxes_left, points_left = iter(boxes), iter(points)
    turns = []
    for number, (question, answer) in enumerate(_exchanges(row, where)):
        segments = tuple(_segments(answer, boxes_left, points_left, where))
        turns.append(Turn(_question(question, number == 0, where), segments, _kind(segments)))
    for name, left, values in (("box", boxes_left, boxes), ("point", points_left, points)):
        unused = len(list(left))
        if unused:
            what = (
                f"{len(values)} {name}{'es' if name == 'box' and len(values) > 1 else 's' if len(values) > 1 else ''}"
            )
            raise DataError(
                f"{where}: {what} but {len(values) - unused} <{name}> in the answers; every one must be used"
            )
    return tuple(turns)


def _exchanges(row: dict[str, Any], where: str) -> Iterator[tuple[str, str]]:
    """Pairs of a question and its answer."""
    messages = row.get("conversations")
    if not isinstance(messages, list):
        raise DataError(f"{where}: 'conversations' must be a list of messages, got {type_name(messages)}")
    if not messages:
        raise DataError(f"{where}: 'conversations' is empty; expected a question and its answer")
    values = []
    for number, message in enumerate(messages):
        place, speaker = f"{where}: conversations[{number}]", _SPEAKERS[number % 2]
        if not isinstance(message, dict) or set(message) != {"from", "value"}:
            raise DataError(f'{place} must be {{"from": "{speaker}", "value": "..."}}')
        if message["from"] != speaker:
            raise DataError(f"{place}: expected a message from '{speaker}', got {message['from']!r}; they take turns")
        if not isinstance(message["value"], str) or not message["value"].strip():
            kind = "question" if speaker == "human" else "answer"
            raise DataError(f"{place}: the {kind} is empty; expected text in 'value'")
        values.append(message["value"].strip())
    if len(values) % 2:
        raise DataError(
            f"{where}: conversations[{len(values) - 1}] has no answer; expected a message from 'gpt' after it"
        )
    yield from zip(values[::2], values[1::2], strict=True)


def _question(text: str, first: bool, where: str) -> str:
    """A question without the mark where the picture goes, which other tools write into the first one."""
    if first:
        text = text.removeprefix(IMAGE_TOKEN).removesuffix(IMAGE_TOKEN).strip()
    for mark in (IMAGE_TOKEN, "<box>", "<point>"):
        if mark in text:
            raise DataError(
                f"{where}: {mark} in a question; boxes and points belong in answers, the picture in 'image'"
            )
    if not text:
        raise DataError(f"{where}: the question is empty; expected text beside {IMAGE_TOKEN}")
    return text


def _segments(answer: str, boxes: Iterator[Box], points: Iterator[Point], where: str) -> Iterator[Segment]:
    if IMAGE_TOKEN in answer:
        raise DataError(f"{where}: {IMAGE_TOKEN} in an answer; a model cannot answer with a picture")
    for piece in _PLACEHOLDER.split(answer):
        if piece == "<box>":
            yield _next(boxes, "<box>", "boxes", where)
        elif piece == "<point>":
            yield _next(points, "<point>", "points", where)
        elif piece:
            yield piece


def _next(left: Iterator[_T], mark: str, values: str, where: str) -> _T:
    for value in left:
        return value
    raise DataError(f"{where}: more {mark} in the answers than entries in '{values}'")


def _kind(segments: Sequence[Segment]) -> str:
    """box or point by what the answer holds, count for a whole number alone, else free."""
    if any(isinstance(segment, Box) for segment in segments):
        return "box"
    if any(isinstance(segment, Point) for segment in segments):
        return "point"
    return "count" if re.fullmatch(r"[0-9]+", "".join(map(str, segments))) else "free"


def _list(row: dict[str, Any], key: str, where: str) -> list[Any]:
    value = row.get(key, [])
    if not isinstance(value, list):
        raise DataError(f"{where}: '{key}' must be a list, got {type_name(value)}")
    return value


def _box(value: Any, number: int, size: Size | None, where: str) -> Box:
    x0, y0, x1, y1 = _numbers(value, 4, f"{where}: boxes[{number}]", "[x0, y0, x1, y1]")
    if x0 >= x1 or y0 >= y1:
        raise DataError(
            f"{where}: boxes[{number}] {value}: expected x0 < x1 and y0 < y1 (corners, not width and height)"
        )
    if x1 <= 0 or y1 <= 0 or (size is not None and (x0 >= size.width or y0 >= size.height)):
        raise DataError(f"{where}: boxes[{number}] {value} lies outside the picture of {_known(size)} pixels")
    return Box(x0, y0, x1, y1)


def _point(value: Any, number: int, size: Size | None, where: str) -> Point:
    x, y = _numbers(value, 2, f"{where}: points[{number}]", "[x, y]")
    if x < 0 or y < 0 or (size is not None and (x > size.width or y > size.height)):
        raise DataError(f"{where}: points[{number}] {value} lies outside the picture of {_known(size)} pixels")
    return Point(x, y)


def _numbers(value: Any, count: int, place: str, form: str) -> list[float]:
    right = isinstance(value, list) and len(value) == count
    # bool is an int in Python but no coordinate in JSON; 1e999 is valid JSON and infinite.
    if not right or not all(type(item) in (int, float) and math.isfinite(item) for item in value):
        raise DataError(f"{place} must be {form} in pixels, got {value!r}")
    return list(value)


def _known(size: Size | None) -> str:
    return "unknown" if size is None else str(size)
