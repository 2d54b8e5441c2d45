"""Coordinate tokens in equal bins of the picture's side (arXiv 2604.03231, Eq. 10-13). Torch-free.

With B bins, a coordinate x of a picture W pixels wide becomes

    q = floor(clip(x / W, 0, 1) * (B - 1) + 1/2) = (2 x (B - 1) + W) // (2 W)     Eq. 11, 12
    x' = q / (B - 1) * W                                                          Eq. 13

computed in exact integers: floating point puts whole pixels into wrong bins. Points are not in the paper; they
follow the same pattern between their own markers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from fusionkit.blocks.box_tokenizers.frame import Malformed, Segment
from fusionkit.blocks.box_tokenizers.specs import CoordinateBinsConfig
from fusionkit.errors import BoxDecodeError, DataError
from fusionkit.geometry import Box, Point, Size
from fusionkit.plugin import BlockSite, Parsed

BOX, END_BOX, POINT, END_POINT = "<BOX>", "<END_BOX>", "<POINT>", "<END_POINT>"

_COORDINATE = r"<COORD_(0|[1-9][0-9]{0,4})>"
_OPENERS = re.compile(rf"(?={BOX}|{POINT})")
_ANY = rf"(?:{BOX}|{END_BOX}|{POINT}|{END_POINT}|<COORD_[^<>]*>)"
_STRAY = re.compile(rf"{_ANY}(?:\s*{_ANY})*")


def _pattern(gap: str) -> re.Pattern[str]:
    box = gap.join([BOX, *[_COORDINATE] * 4, END_BOX])
    point = gap.join([POINT, *[_COORDINATE] * 2, END_POINT])
    return re.compile(f"{box}|{point}")


_STRICT = _pattern("")
_LENIENT = _pattern(r"\s*")


class CoordinateBins:
    """`<BOX><COORD_x0><COORD_y0><COORD_x1><COORD_y1><END_BOX>` and `<POINT><COORD_x><COORD_y><END_POINT>`.

    Units: pixels of the original picture on both sides. A coordinate comes back within `tolerance(size)`.

    Example:
        >>> bins = CoordinateBins(CoordinateBinsConfig(bins=101))
        >>> bins.encode(Box(0, 50, 100, 200), Size(200, 200))
        '<BOX><COORD_0><COORD_25><COORD_50><COORD_100><END_BOX>'
        >>> bins.parse('there: <POINT><COORD_50><COORD_25><END_POINT>', Size(200, 200)).points
        (Point(x=100.0, y=50.0, label=''),)
    """

    def __init__(self, config: CoordinateBinsConfig, site: BlockSite | None = None) -> None:
        self.bins = config.bins

    def vocabulary(self) -> tuple[str, ...]:
        """Every token to add: the four markers, then the coordinates."""
        return (BOX, END_BOX, POINT, END_POINT, *self.coordinates())

    def coordinates(self) -> tuple[str, ...]:
        """The coordinate tokens in rising order."""
        return tuple(f"<COORD_{number}>" for number in range(self.bins))

    def forms(self) -> tuple[tuple[str, int, str], ...]:
        """What a well-formed piece is, for constrained decoding: opening token, number of coordinates, closing token."""
        return (BOX, 4, END_BOX), (POINT, 2, END_POINT)

    def tolerance(self, size: Size) -> tuple[float, float]:
        """Largest distance in x and in y between a coordinate inside the picture and what it comes back as, pixels."""
        return size.width / (2 * (self.bins - 1)), size.height / (2 * (self.bins - 1))

    def encode(self, item: Box | Point | Sequence[Box | Point], size: Size) -> str:
        """Text of a box, a point, or several of them without anything between.

        Coordinates outside the picture are clamped to its edge and corners are put in order, as Eq. 10 requires.
        Raises DataError for coordinates that are not finite.
        """
        if isinstance(item, Box):
            left, right = sorted((item.x0, item.x1))
            top, bottom = sorted((item.y0, item.y1))
            corners = (left, top, right, bottom)
            return BOX + self._tokens(item, corners, size) + END_BOX
        if isinstance(item, Point):
            return POINT + self._tokens(item, (item.x, item.y), size) + END_POINT
        return "".join(self.encode(part, size) for part in item)

    def parse(self, text: str, size: Size, strict: bool = False) -> Parsed:
        """All boxes and points in a text, in pixels of a picture of `size`; other text is passed over.

        Lenient: spaces between tokens are allowed, swapped corners are put in order, and runs of these tokens that
        are no box or point are returned in `malformed`. Strict: the first of any of these raises BoxDecodeError.
        """
        pieces = self.segments(text, size, strict)
        items = [item for piece in pieces if isinstance(piece, tuple) for item in piece]
        return Parsed(
            tuple(item for item in items if isinstance(item, Box)),
            tuple(item for item in items if isinstance(item, Point)),
            tuple(str(piece) for piece in pieces if isinstance(piece, Malformed)),
        )

    def segments(self, text: str, size: Size, strict: bool = False) -> list[Segment]:
        """The text cut into words, malformed pieces, and boxes and points (one each); raises as `parse` does."""
        found: list[Segment] = []
        end = 0
        for match in (_STRICT if strict else _LENIENT).finditer(text):
            found += _words(text[end : match.start()])
            end = match.end()
            numbers = [int(group) for group in match.groups() if group is not None]
            if max(numbers) >= self.bins:
                found.append(Malformed(match.group()))
                continue
            xs = [self._decode(number, size.width) for number in numbers[::2]]
            ys = [self._decode(number, size.height) for number in numbers[1::2]]
            if strict and (xs != sorted(xs) or ys != sorted(ys)):
                raise BoxDecodeError(f"corners of {match.group()} are swapped; expected x0 <= x1 and y0 <= y1")
            if len(numbers) == 4:
                found.append((Box(min(xs), min(ys), max(xs), max(ys)),))
            else:
                found.append((Point(xs[0], ys[0]),))
        found += _words(text[end:])
        bad = next((piece for piece in found if isinstance(piece, Malformed)), None)
        if strict and bad is not None:
            raise BoxDecodeError(
                f"{str(bad)!r} is neither a box {BOX}<COORD_i>x4{END_BOX} nor a point {POINT}<COORD_i>x2{END_POINT} "
                f"with i from 0 to {self.bins - 1}"
            )
        return found

    def _tokens(self, item: Box | Point, coordinates: Sequence[float], size: Size) -> str:
        if not all(map(math.isfinite, coordinates)):
            raise DataError(f"cannot encode {item}: coordinates must be finite numbers")
        sides = (size.width, size.height) * (len(coordinates) // 2)
        return "".join(f"<COORD_{self._bin(x, side)}>" for x, side in zip(coordinates, sides, strict=True))

    def _bin(self, x: float, side: int) -> int:
        """Eq. 11 and 12 in integers; a float is the exact ratio of two integers, so nothing is rounded before."""
        above, below = float(min(max(x, 0), side)).as_integer_ratio()
        return (2 * above * (self.bins - 1) + side * below) // (2 * side * below)

    def _decode(self, number: int, side: int) -> float:
        """Eq. 13; dividing two integers rounds once, correctly."""
        return number * side / (self.bins - 1)


def _words(text: str) -> list[Segment]:
    """Text that holds no whole box or point: words, and runs of box and point tokens, split where a new one begins."""
    found: list[Segment] = []
    end = 0
    for run in _STRAY.finditer(text):
        found.append(text[end : run.start()])
        for part in _OPENERS.split(run.group()):
            if part:
                trimmed = part.rstrip()
                found += [Malformed(trimmed), part[len(trimmed) :]]
        end = run.end()
    return [piece for piece in [*found, text[end:]] if piece]
