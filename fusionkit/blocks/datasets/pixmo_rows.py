"""From the rows of PixMo's parts to turns and objects. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fusionkit.blocks.datasets.rows import text_of, type_name
from fusionkit.errors import DataError
from fusionkit.geometry import Box, Mask, Point, Size
from fusionkit.sample import SceneObject, Turn

_Row = dict[str, Any]


def turns_of(part: str, row: _Row, size: Size, where: str) -> tuple[Turn, ...]:
    """The questions of a row; raises DataError naming what is wrong in it."""
    return _TURNS[part](row, size, where)


def objects_of(part: str, row: _Row, size: Size, where: str) -> tuple[SceneObject, ...]:
    """The masks of a row in the order of its points; none for parts without them."""
    if part != "points_eval":
        return ()
    masks = row.get("masks")
    points = [point for _, point in _sorted_points(row, size, where)]
    if not isinstance(masks, list) or len(masks) != len(points):
        got = f"{len(masks)}" if isinstance(masks, list) else type_name(masks)
        raise DataError(f"{where}: 'masks' must be a list of one mask for each of {len(points)} points, got {got}")
    return tuple(
        _object(masks[index], size, f"{where}: masks[{index}]") for index, _ in _sorted_points(row, size, where)
    )


def _caption(row: _Row, size: Size, where: str) -> tuple[Turn, ...]:
    return (Turn("Describe this picture.", (text_of(row, "caption", where),), "describe"),)


def _asked(row: _Row, size: Size, where: str) -> tuple[Turn, ...]:
    return (Turn(text_of(row, "question", where), (text_of(row, "answer", where),)),)


def _count(row: _Row, size: Size, where: str) -> tuple[Turn, ...]:
    count = row.get("count")
    if type(count) is not int or count < 0:
        raise DataError(f"{where}: 'count' must be a whole number, got {count!r}")
    return (Turn(f"How many {text_of(row, 'label', where)} are there?", (str(count),), "count"),)


def _points(row: _Row, size: Size, where: str) -> tuple[Turn, ...]:
    question = f"Point to {text_of(row, 'label', where)}."
    points = tuple(point for _, point in _sorted_points(row, size, where))
    return (Turn(question, points or ("There are none.",), "point"),)


def _docs(row: _Row, size: Size, where: str) -> tuple[Turn, ...]:
    listed = row.get("questions")
    if isinstance(listed, dict):  # both as lists, as parquet files of `datasets` hold them
        questions, answers = listed.get("question"), listed.get("answer")
        if not (isinstance(questions, list) and isinstance(answers, list) and len(questions) == len(answers)):
            raise DataError(f"{where}: 'questions' must have as many answers as questions")
        listed = [{"question": q, "answer": a} for q, a in zip(questions, answers, strict=True)]
    if not isinstance(listed, list) or not listed or not all(isinstance(each, dict) for each in listed):
        raise DataError(f'{where}: \'questions\' must be a list of {{"question": ..., "answer": ...}}')
    return tuple(
        turn for number, each in enumerate(listed) for turn in _asked(each, size, f"{where}: questions[{number}]")
    )


def _sorted_points(row: _Row, size: Size, where: str) -> list[tuple[int, Point]]:
    """The points left to right, each with its place in the row."""
    listed = row.get("points")
    if not isinstance(listed, list):
        raise DataError(f'{where}: \'points\' must be a list of {{"x": ..., "y": ...}}, got {listed!r}')
    points = [(index, _percent(value, size, where)) for index, value in enumerate(listed)]
    return sorted(points, key=lambda each: (each[1].x, each[1].y))


def _percent(value: Any, size: Size, where: str) -> Point:
    numbers: list[Any] = [value.get("x"), value.get("y")] if isinstance(value, dict) else []
    # bool is an int in Python but no coordinate in JSON.
    if not numbers or not all(type(number) in (int, float) and 0 <= number <= 100 for number in numbers):
        raise DataError(f"{where}: a point must have x and y from 0 to 100 percent, got {value!r}")
    x, y = numbers
    return Point(x * size.width / 100, y * size.height / 100)


def _object(rows: Any, size: Size, where: str) -> SceneObject:
    """An object from the rows of its mask; raises DataError for a mask of another size, or without a pixel."""
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise DataError(f"{where}: expected rows of truth values, got {type_name(rows)}")
    try:
        mask = Mask.of_rows(rows)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    if mask.size != size:
        raise DataError(f"{where}: a mask of {mask.size} pixels for a picture of {size}")
    columns = [x for row in rows for x, value in enumerate(row) if value]
    lines = [y for y, row in enumerate(rows) if any(row)]
    if not lines:
        raise DataError(f"{where}: the mask covers no pixel")
    return SceneObject(Box(min(columns), lines[0], max(columns) + 1, lines[-1] + 1), mask=mask)


_TURNS: dict[str, Callable[[_Row, Size, str], tuple[Turn, ...]]] = {
    "cap": _caption,
    "cap_qa": _asked,
    "ask": _asked,
    "count": _count,
    "points": _points,
    "points_eval": _points,
    "docs": _docs,
}
