"""From the columns of a row to questions and answers with boxes and points. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from fusionkit.blocks.datasets.rows import type_name
from fusionkit.blocks.datasets.specs import HuggingFaceConfig
from fusionkit.errors import DataError
from fusionkit.geometry import Size
from fusionkit.plugin import IMAGE_TOKEN

_PLACE = re.compile(r"\{([^{}]*)\}")
_SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}


class Reader:
    """Reads rows by a config's mapping; raises DataError naming what columns there are when one of it is not."""

    def __init__(self, config: HuggingFaceConfig, features: Mapping[str, Any]) -> None:
        self.columns = config.columns
        self.ask = config.ask
        self.box_format = config.box_format
        self.units = config.units
        needed = {f"columns.{name}": column for name, column in self.columns if column is not None}
        needed |= {f"ask: {{{name}}}": name for name in self._asked()}
        self.names = {name: _classes(_feature(features, name, place, config.path)) for place, name in needed.items()}

    def _asked(self) -> list[str]:
        return _PLACE.findall(self.ask) if self.ask is not None else []

    def pictures(self, row: Mapping[str, Any], where: str) -> list[Any]:
        """What the picture column holds, as a list; empty where the row has none."""
        if self.columns.image is None:
            return []
        value = self._value(row, self.columns.image)
        listed = value if isinstance(value, list) else [value]
        return [each for each in listed if each is not None]

    def exchange(self, row: Mapping[str, Any], size: Size | None, where: str) -> dict[str, Any]:
        """The row in the format of `jsonl`: conversations, boxes, points."""
        boxes = self._places(row, self.columns.boxes, 4, size, where)
        points = self._places(row, self.columns.points, 2, size, where)
        if self.columns.conversations is not None:
            pairs = _messages(self._value(row, self.columns.conversations), self.columns.conversations, where)
        else:
            pairs = self._pairs(row, len(boxes), len(points), where)
        messages = [
            {"from": speaker, "value": text}
            for question, answer in pairs
            for speaker, text in (("human", _without_marks(question)), ("gpt", answer))
        ]
        return {"conversations": messages, "boxes": boxes, "points": points}

    def _pairs(self, row: Mapping[str, Any], boxes: int, points: int, where: str) -> list[tuple[str, str]]:
        if self.ask is not None:
            asked: Any = _PLACE.sub(lambda found: self._text(row, found[1], where), self.ask)
        else:
            asked = self._texts(row, str(self.columns.question), where)
        if self.columns.answer is None:
            if isinstance(asked, list):
                raise DataError(f"{where}: several questions but no answers; give columns.answer")
            if not boxes and not points:
                raise DataError(f"{where}: no box and no point, so there is no answer")
            return [(asked, " ".join(["<box>"] * boxes + ["<point>"] * points))]
        answered = self._texts(row, self.columns.answer, where)
        questions, answers = (each if isinstance(each, list) else [each] for each in (asked, answered))
        if len(questions) != len(answers):
            raise DataError(
                f"{where}: {_counted(len(questions), 'question')} but {_counted(len(answers), 'answer')} in column "
                f"`{self.columns.answer}`; expected one for each"
            )
        return list(zip(questions, answers, strict=True))

    def _texts(self, row: Mapping[str, Any], column: str, where: str) -> str | list[str]:
        value = self._named(row, column)
        if isinstance(value, list):
            return [_text(each, column, where) for each in value]
        return _text(value, column, where)

    def _text(self, row: Mapping[str, Any], column: str, where: str) -> str:
        return _text(self._named(row, column), column, where)

    def _named(self, row: Mapping[str, Any], column: str) -> Any:
        """What a column holds, classes by their names."""
        value, names = self._value(row, column), self.names[column]
        if names is None:
            return value

        # -1 stands for a class that is not known.
        def named(number: Any) -> Any:
            return names[number] if isinstance(number, int) and 0 <= number < len(names) else None

        return [named(each) for each in value] if isinstance(value, list) else named(value)

    def _value(self, row: Mapping[str, Any], column: str) -> Any:
        """What a column holds; of a list of parts the same part of each."""
        value: Any = row
        for name in (column,) if column in row else column.split("."):
            if isinstance(value, list):
                value = [None if each is None else each.get(name) for each in value]
            else:
                value = None if value is None else value.get(name)
        return value

    def _places(
        self, row: Mapping[str, Any], column: str | None, count: int, size: Size | None, where: str
    ) -> list[list[float]]:
        """Boxes or points in pixels, boxes as corners."""
        if column is None:
            return []
        value = self._value(row, column)
        if value is None:
            return []
        if not isinstance(value, list):
            raise DataError(f"{where}: column `{column}` must hold lists of {count} numbers, got {type_name(value)}")
        listed = [value] if value and not isinstance(value[0], list) else value
        if listed and size is None:
            raise DataError(
                f"{where}: column `{column}` has {_counted(len(listed), 'entry', 'entries')}, but the row no picture"
            )
        return [self._in_pixels(each, column, count, size, where) for each in listed]

    def _in_pixels(self, value: Any, column: str, count: int, size: Size | None, where: str) -> list[float]:
        right = isinstance(value, list) and len(value) == count
        if size is None or not right or not all(type(each) in (int, float) for each in value):
            raise DataError(f"{where}: column `{column}` must hold lists of {count} numbers, got {value!r}")
        numbers = list(value)
        if count == 4 and self.box_format == "xywh":
            numbers = [numbers[0], numbers[1], numbers[0] + numbers[2], numbers[1] + numbers[3]]
        if self.units == "shares":
            numbers = [each * side for each, side in zip(numbers, (size.width, size.height) * 2, strict=False)]
        return numbers


def _feature(features: Mapping[str, Any], column: str, place: str, source: str) -> Any:
    """What the library knows of a column; raises DataError naming those there are."""
    if column in features:
        return features[column]
    found: Any = features
    known = list(features)
    for name in column.split("."):
        found = getattr(found, "feature", found)  # the entries of a list
        if not isinstance(found, Mapping) or name not in found:
            near = get_close_matches(column, known, n=1)
            meant = f"did you mean `{near[0]}`? " if near else ""
            raise DataError(f"{source}: no column `{column}` ({place}); {meant}there are {', '.join(known)}")
        found = found[name]
        parts = getattr(found, "feature", found)
        known += [f"{name}.{part}" for part in parts] if isinstance(parts, Mapping) else []
    return found


def _classes(feature: Any) -> Sequence[str] | None:
    """The names of a column of classes, or of lists of them."""
    names: Sequence[str] | None = getattr(getattr(feature, "feature", feature), "names", None)
    return names


def _messages(value: Any, column: str, where: str) -> list[tuple[str, str]]:
    if not isinstance(value, list) or not value or not all(isinstance(each, dict) for each in value):
        raise DataError(f"{where}: column `{column}` must hold a list of messages, got {type_name(value)}")
    if {"user", "assistant"} <= set(value[0]):
        return [(_text(each.get("user"), column, where), _text(each.get("assistant"), column, where)) for each in value]
    said = [
        (str(each.get("from", each.get("role"))), _content(each.get("value", each.get("content")), column, where))
        for each in value
    ]
    if said[0][0] == "system":
        said = said[1:]
    wrong = [
        number for number, (speaker, _) in enumerate(said) if _SPEAKERS.get(speaker) != ("human", "gpt")[number % 2]
    ]
    if wrong or not said or len(said) % 2:
        speakers = ", ".join(speaker for speaker, _ in said)
        raise DataError(
            f"{where}: column `{column}` must hold questions and answers in turn, got messages from {speakers}"
        )
    texts = [text for _, text in said]
    return list(zip(texts[::2], texts[1::2], strict=True))


def _content(value: Any, column: str, where: str) -> str:
    """A message's text; of a list of parts, those that are text."""
    if isinstance(value, list):
        value = "".join(each.get("text") or "" for each in value if isinstance(each, dict))
    return _text(value, column, where)


def _text(value: Any, column: str, where: str) -> str:
    if type(value) is int:
        return str(value)
    if not isinstance(value, str) or not value.strip():
        got = "nothing" if value is None else repr(value) if isinstance(value, str) else type_name(value)
        raise DataError(f"{where}: column `{column}` must hold text or a whole number, got {got}")
    return value.strip()


def _without_marks(question: str) -> str:
    """A question without the marks where pictures go: they are shown before it."""
    return " ".join(question.replace(IMAGE_TOKEN, " ").split()) if IMAGE_TOKEN in question else question


def _counted(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
