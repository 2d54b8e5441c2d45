"""Points in percent of the picture with one decimal, as Molmo and PixMo write them. Torch-free.

A number is round-half-even(1000 x / W) tenths of a percent. Several points of one label stand in one tag, sorted by
x, then y. The format has no boxes: here a box is a tag of its two corners whose `alt` is `box` or `box of LABEL`;
with `pairs: boxes` every tag of two points is read as a box, as the released evaluation does.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from fractions import Fraction

from fusionkit.blocks.box_tokenizers.frame import BoxFormat, Item, Items
from fusionkit.errors import BoxDecodeError
from fusionkit.geometry import Box, Size

_PERCENT = r"([0-9]{1,3}(?:\.[0-9]{1,6})?)"
_POINT = re.compile(
    rf'\bx([0-9]{{0,4}})\s*+=\s*+"\s*+{_PERCENT}\s*+"\s++y\1\s*+=\s*+"\s*+{_PERCENT}\s*+"'
    r"|\b(?:p|[0-9]{1,4})\s*+=\s*+([0-9]{3}),\s*+([0-9]{3})\b"
)
_ALT = re.compile(r'\balt\s*+=\s*+"([^"]*)"')
_BOX = "box"


class MolmoPoints(BoxFormat):
    """`<point x="12.3" y="45.6" alt="cat">cat</point>` and `<points x1="1.0" y1="2.0" x2=.. alt="cats">cats</points>`.

    Lenient parsing also takes numbers without or with more decimals, and Molmo's older `p=123, 456` and
    `1=123,456 2=..` in tenths of a percent. A number over 100 makes the whole tag malformed. Error: W/2000 pixels.

    Example:
        >>> from fusionkit.blocks.box_tokenizers.specs import MolmoPointsConfig
        >>> from fusionkit.geometry import Point
        >>> MolmoPoints(MolmoPointsConfig()).encode(Point(320, 60, "eye"), Size(640, 480))
        '<point x="50.0" y="12.5" alt="eye">eye</point>'
    """

    pattern = re.compile(r"<(points?)\b([^<>]*+)>([^<>]*+)</\1>")
    stray = re.compile(r"<points?\b[^<>]*+>?|</points?>")

    def steps(self, size: Size) -> tuple[int, int]:
        return 1000, 1000

    def write(self, group: Items, label: str, size: Size) -> str:
        if isinstance(group[0], Box):
            title = html.escape(f"{_BOX} of {label}" if label else _BOX)
            return "".join(_tag(_pairs(self.numbers(box, size)), title) for box in group)
        return _tag(sorted(pair for point in group for pair in _pairs(self.numbers(point, size))), html.escape(label))

    def join(self, pieces: list[str]) -> str:
        return " ".join(pieces)

    def read(self, match: re.Match[str], size: Size) -> Iterator[Item]:
        attributes = match[2]
        alt = _ALT.search(attributes)
        without = _ALT.sub("", attributes)
        if _POINT.sub("", without).strip() or not (found := _POINT.findall(without)):
            raise BoxDecodeError(f"{match.group()[:120]!r}: expected x and y from 0 to 100 in pairs, and alt")
        title = html.unescape(match[3] if alt is None else alt[1]).strip()
        pairs = [
            (_tenths(x), _tenths(y)) if x else (float(older_x), float(older_y)) for _, x, y, older_x, older_y in found
        ]
        box, _, named = title.partition(f"{_BOX} of ")
        marked = title == _BOX or (not box and bool(named))
        if len(pairs) == 2 and (marked or self.config.pairs == "boxes"):
            label = named if marked else title
            yield self.item([*pairs[0], *pairs[1]], size, label)
            return
        for x, y in pairs:
            yield self.item([x, y], size, title)


def _tag(pairs: list[tuple[int, int]], title: str) -> str:
    def percent(tenths: int) -> str:
        return f"{tenths // 10}.{tenths % 10}"

    if len(pairs) == 1:
        ((x, y),) = pairs
        return f'<point x="{percent(x)}" y="{percent(y)}" alt="{title}">{title}</point>'
    places = " ".join(
        f'x{number}="{percent(x)}" y{number}="{percent(y)}"' for number, (x, y) in enumerate(pairs, start=1)
    )
    return f'<points {places} alt="{title}">{title}</points>'


def _pairs(numbers: tuple[int, ...]) -> list[tuple[int, int]]:
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _tenths(percent: str) -> float:
    """Percent as text, in tenths; exact where it is whole."""
    tenths = Fraction(percent) * 10
    return tenths.numerator if tenths.denominator == 1 else float(tenths)
