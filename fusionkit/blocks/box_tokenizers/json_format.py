"""Boxes and points as JSON objects, one number scheme left open. Torch-free."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from fusionkit.blocks.box_tokenizers.frame import BoxFormat, Item, Items
from fusionkit.errors import BoxDecodeError
from fusionkit.geometry import Box, Size

_BOX, _POINT = "bbox_2d", "point_2d"
_NUMBER = r"-?(?:0|[1-9][0-9]{0,5})(?:\.[0-9]{1,6})?"
_STRING = r'"(?:[^"\\\n]|\\.)*+"'
_FIELD = rf"{_STRING}\s*+:\s*+(?:{_STRING}|{_NUMBER}|true|false|null)"
_ARRAY = rf"\[\s*+{_NUMBER}(?:\s*+,\s*+{_NUMBER})*+\s*+\]"
_OBJECT = rf'\{{\s*+(?:{_FIELD}\s*+,\s*+)*+"(?:{_BOX}|{_POINT})"\s*+:\s*+{_ARRAY}(?:\s*+,\s*+{_FIELD})*+\s*+\}}'


class JsonFormat(BoxFormat):
    """`[{"bbox_2d": [x0, y0, x1, y1], "label": "cat"}, {"point_2d": [x, y]}]`, or one such object without brackets.

    Lenient parsing takes any spacing, decimals, other fields and a list cut off after a whole object.
    """

    pattern = re.compile(rf"\[\s*+{_OBJECT}(?:\s*+,\s*+{_OBJECT})*+(?:\s*+\])?|{_OBJECT}")
    stray = re.compile(rf'\{{?"(?:{_BOX}|{_POINT})"[^{{}}\n]*+\}}?')
    _object = re.compile(_OBJECT)

    def write(self, group: Items, label: str, size: Size) -> str:
        key = _BOX if isinstance(group[0], Box) else _POINT
        named = {"label": label} if label else {}
        rows = [{key: self.numbers(item, size), **named} for item in group]
        return ", ".join(json.dumps(row, ensure_ascii=False) for row in rows)

    def join(self, pieces: list[str]) -> str:
        text = ", ".join(pieces)
        return text if len(self._object.findall(text)) == 1 else f"[{text}]"

    def read(self, match: re.Match[str], size: Size) -> Iterator[Item]:
        for piece in self._object.findall(match.group()):
            try:
                row = json.loads(piece)
            except ValueError as error:
                raise BoxDecodeError(f"{piece[:120]!r}: not valid JSON: {error}") from error
            # Of fields that stand twice JSON keeps the last, so the array that was found may be gone.
            key = next((key for key in (_BOX, _POINT) if isinstance(row.get(key), list)), None)
            label = row.get("label", "")
            if key is None or len(row[key]) != (4 if key == _BOX else 2) or not isinstance(label, str):
                raise BoxDecodeError(
                    f"{piece[:120]!r}: expected 4 numbers in {_BOX} or 2 in {_POINT}, and text in label"
                )
            yield self.item(row[key], size, label.strip())
