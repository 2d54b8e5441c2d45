"""What the text formats of boxes share: exact rounding, clamping, strict and lenient parsing. Torch-free.

A format writes whole numbers from 0 at one edge of the picture to `steps(size)` at the other. A coordinate x of a
side W becomes the number round(x * steps / W), in exact integers, and a number k becomes k * W / steps, rounded once.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, ClassVar

from fusionkit.errors import BoxDecodeError, DataError
from fusionkit.geometry import Box, Point, Size
from fusionkit.plugin import BlockSite, Parsed

Item = Box | Point
Items = tuple[Item, ...]


class Malformed(str):
    """A piece of text that looks like a box or point but is none."""

    __slots__ = ()


Segment = str | Malformed | Items
"""A stretch of text: words, a malformed piece, or the boxes and points that one piece of it means."""


def half_even(above: int, below: int) -> int:
    """above / below to the nearest whole number, a half to the even one (Python's `round`, without its floats)."""
    whole, rest = divmod(above, below)
    return whole + (2 * rest > below or (2 * rest == below and whole % 2 == 1))


def half_up(above: int, below: int) -> int:
    """above / below to the nearest whole number, a half upwards: floor(v + 1/2)."""
    return (2 * above + below) // (2 * below)


class BoxFormat(ABC):
    """A format of boxes and points in text.

    Units: pixels of the original picture on both sides; a coordinate comes back within `tolerance(size)`.
    `pattern` finds one piece (a box, a point, or a list that the format writes as one); `stray` finds, in the text
    between pieces, what is left of broken ones. Both must take time linear in the text.
    """

    pattern: ClassVar[re.Pattern[str]]
    stray: ClassVar[re.Pattern[str]]
    clips: ClassVar[bool] = False
    """Whether lenient parsing moves numbers beyond the edge to the edge; else they are malformed."""

    def __init__(self, config: Any, site: BlockSite | None = None) -> None:
        self.config = config

    @abstractmethod
    def steps(self, size: Size) -> tuple[int, int]:
        """The numbers that stand for the right and the bottom edge."""

    @abstractmethod
    def write(self, group: Items, label: str, size: Size) -> str:
        """Text of several boxes, or several points, with one label (which may be empty)."""

    @abstractmethod
    def read(self, match: re.Match[str], size: Size) -> Iterator[Item]:
        """What a piece means; raises BoxDecodeError when it means nothing."""

    def rounded(self, above: int, below: int) -> int:
        """How above / below becomes a whole number."""
        return half_even(above, below)

    def join(self, pieces: list[str]) -> str:
        """Several groups as one text."""
        return "".join(pieces)

    def vocabulary(self) -> tuple[str, ...]:
        """Every token to add; none for formats of plain text."""
        return ()

    def coordinates(self) -> tuple[str, ...]:
        """The coordinate tokens in rising order; none for formats of plain text."""
        return ()

    def tolerance(self, size: Size) -> tuple[float, float]:
        """Largest distance in x and in y between a coordinate inside the picture and what it comes back as, pixels."""
        across, down = self.steps(size)
        return size.width / (2 * across), size.height / (2 * down)

    # ------------------------------------------------------------------------------------------------ writing
    def encode(self, item: Item | Sequence[Item], size: Size) -> str:
        """Text of a box, a point or a list; neighbours in a list that share a label are written as the format groups them.

        Coordinates outside the picture are clamped to its edge and corners put in order. Raises DataError for
        coordinates that are not finite and for labels that the format cannot hold.
        """
        items = (item,) if isinstance(item, Box | Point) else tuple(item)
        tidy = [_tidied(each) for each in items]
        return self.join(
            [
                self.write(tuple(group), label.strip(), size)
                for (_, label), group in groupby(tidy, key=lambda each: (type(each), each.label))
            ]
        )

    def numbers(self, item: Item, size: Size) -> tuple[int, ...]:
        """x0 y0 x1 y1 of a box, or x y of a point, as the format's numbers."""
        corners = (item.x0, item.y0, item.x1, item.y1) if isinstance(item, Box) else (item.x, item.y)
        return tuple(
            self.number(min(max(value, 0), side), index % 2, size)
            for index, (value, side) in enumerate(zip(corners, 2 * (size.width, size.height), strict=False))
        )

    def number(self, x: float, axis: int, size: Size) -> int:
        """The number of one coordinate inside the picture; a float is the exact ratio of two integers."""
        above, below = float(x).as_integer_ratio()
        side = (size.width, size.height)[axis]
        return self.rounded(above * self.steps(size)[axis], below * side)

    # ------------------------------------------------------------------------------------------------ reading
    def parse(self, text: str, size: Size, strict: bool = False) -> Parsed:
        """All boxes and points in a text, in pixels of a picture of `size`; other text is passed over.

        Lenient: spaces may differ, swapped corners are put in order, and broken pieces are returned in `malformed`.
        Strict: a piece that is not written exactly as `encode` writes it raises BoxDecodeError.
        """
        pieces = self.segments(text, size, strict)
        items = [item for piece in pieces if isinstance(piece, tuple) for item in piece]
        return Parsed(
            tuple(item for item in items if isinstance(item, Box)),
            tuple(item for item in items if isinstance(item, Point)),
            tuple(str(piece).strip() for piece in pieces if isinstance(piece, Malformed)),
        )

    def segments(self, text: str, size: Size, strict: bool = False) -> list[Segment]:
        """The text cut into words, malformed pieces and what its boxes and points mean; raises as `parse` does."""
        found: list[Segment] = []
        end = 0
        for match in self.pattern.finditer(text):
            found += self._words(text[end : match.start()], strict)
            end = match.end()
            try:
                items = tuple(self.read(match, size))
            except BoxDecodeError:
                if strict:
                    raise
                found.append(Malformed(match.group()))
                continue
            if strict and (again := self._again(items, size)) != match.group():
                raise BoxDecodeError(f"{_short(match.group())}: strict parsing expects it written as {_short(again)}")
            found.append(items)
        return found + self._words(text[end:], strict)

    def item(self, numbers: Sequence[float], size: Size, label: str = "") -> Item:
        """The box of four numbers x0 y0 x1 y1 or the point of two; raises BoxDecodeError when one is out of range."""
        if len(numbers) not in (2, 4):
            raise BoxDecodeError(f"{list(numbers)}: expected 2 numbers (a point) or 4 (a box), got {len(numbers)}")
        limits = self.steps(size)
        placed = []
        for index, number in enumerate(numbers):
            limit = limits[index % 2]
            if not 0 <= number <= limit and not self.clips:
                raise BoxDecodeError(f"{number:g} is outside 0..{limit}, the numbers of a {size} picture")
            placed.append(self.coordinate(min(max(number, 0), limit), index % 2, size))
        if len(placed) == 2:
            return Point(placed[0], placed[1], label)
        return Box(min(placed[::2]), min(placed[1::2]), max(placed[::2]), max(placed[1::2]), label)

    def coordinate(self, number: float, axis: int, size: Size) -> float:
        """The coordinate of one number; dividing two integers rounds once, correctly."""
        return number * (size.width, size.height)[axis] / self.steps(size)[axis]

    def _again(self, items: Items, size: Size) -> str:
        try:
            return self.encode(items, size)
        except DataError as error:
            raise BoxDecodeError(str(error)) from error

    def _words(self, text: str, strict: bool) -> list[Segment]:
        """Text without a whole piece, cut at the remains of broken ones."""
        found: list[Segment] = []
        end = 0
        for match in self.stray.finditer(text):
            if strict:
                raise BoxDecodeError(
                    f"{_short(match.group())} is no box or point; expected for example {self._example()}"
                )
            found += [text[end : match.start()], Malformed(match.group())]
            end = match.end()
        return [piece for piece in [*found, text[end:]] if piece]

    def _example(self) -> str:
        return self.encode(Box(0, 0, 5, 5), Size(10, 10))


def checked_label(label: str, allowed: re.Pattern[str], form: str) -> str:
    """The label if the format can hold it; raises DataError."""
    if label and not allowed.fullmatch(label):
        raise DataError(f"label {label!r} cannot be written in {form}; expected text like {allowed.pattern}")
    return label


def digits(text: str) -> float:
    """A short decimal number, whole where it is whole."""
    value = float(text)
    return int(value) if value.is_integer() else value


def _tidied(item: Item) -> Item:
    corners = (item.x0, item.y0, item.x1, item.y1) if isinstance(item, Box) else (item.x, item.y)
    if not all(map(math.isfinite, corners)):
        raise DataError(f"cannot encode {item}: coordinates must be finite numbers")
    if isinstance(item, Point):
        return item
    left, right = sorted((item.x0, item.x1))
    top, bottom = sorted((item.y0, item.y1))
    return Box(left, top, right, bottom, item.label)


def _short(text: str) -> str:
    return repr(text if len(text) <= 120 else text[:117] + "...")
