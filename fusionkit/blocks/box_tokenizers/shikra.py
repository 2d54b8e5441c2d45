"""Shikra's boxes: shares of the square that the picture is padded to, three decimals. Torch-free.

The picture is centred in a square of side S = max(W, H), (S - W) // 2 pixels from its left edge. A number is
round-half-even(1000 (x + pad) / S) thousandths.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction

from fusionkit.blocks.box_tokenizers.frame import BoxFormat, Item, Items
from fusionkit.errors import BoxDecodeError
from fusionkit.geometry import Size

_NUMBER = r"[01]\.[0-9]{1,6}"
_FOUR = rf"{_NUMBER}(?:\s*+,\s*+{_NUMBER}){{3}}"
_TWO = rf"{_NUMBER}\s*+,\s*+{_NUMBER}"


class Shikra(BoxFormat):
    """`[0.123,0.456,0.789,0.900;...]` for boxes, `[0.123,0.456;...]` for points, shares of the padded square.

    Coordinates in the padding are moved to the picture's edge. `padded: false` takes shares of the picture's own
    sides. Labels are not in the format. Error: S / 2000 pixels.

    Example:
        >>> from fusionkit.blocks.box_tokenizers.specs import ShikraConfig
        >>> from fusionkit.geometry import Box
        >>> Shikra(ShikraConfig()).encode(Box(0, 0, 320, 480), Size(640, 480))
        '[0.000,0.125,0.500,0.875]'
    """

    pattern = re.compile(rf"\[\s*+(?:{_FOUR}(?:\s*+;\s*+{_FOUR})*+|{_TWO}(?:\s*+;\s*+{_TWO})*+)\s*+\]")
    stray = re.compile(r"\[\s*+-?[0-9]+\.[0-9][0-9.,;\s-]*+\]?")

    def steps(self, size: Size) -> tuple[int, int]:
        return 1000, 1000

    def tolerance(self, size: Size) -> tuple[float, float]:
        (across, _), (down, _) = self._square(size)
        return across / 2000, down / 2000

    def number(self, x: float, axis: int, size: Size) -> int:
        side, pad = self._square(size)[axis]
        above, below = float(x).as_integer_ratio()
        return self.rounded((above + pad * below) * 1000, below * side)

    def coordinate(self, number: float, axis: int, size: Size) -> float:
        side, pad = self._square(size)[axis]
        return min(max((number * side - 1000 * pad) / 1000, 0.0), float((size.width, size.height)[axis]))

    def write(self, group: Items, label: str, size: Size) -> str:
        shares = (",".join(f"{n // 1000}.{n % 1000:03d}" for n in self.numbers(item, size)) for item in group)
        return f"[{';'.join(shares)}]"

    def join(self, pieces: list[str]) -> str:
        return " ".join(pieces)

    def read(self, match: re.Match[str], size: Size) -> Iterator[Item]:
        for piece in match.group().split(";"):
            thousandths = [Fraction(number) * 1000 for number in re.findall(_NUMBER, piece)]
            if max(thousandths) > 1000:
                raise BoxDecodeError(f"{piece[:120]!r}: expected shares from 0 to 1")
            yield self.item([int(n) if n.denominator == 1 else float(n) for n in thousandths], size)

    def _square(self, size: Size) -> tuple[tuple[int, int], tuple[int, int]]:
        """For x and y: the side that shares are taken of, and the padding before the picture."""
        if not self.config.padded:
            return (size.width, 0), (size.height, 0)
        side = max(size.width, size.height)
        return (side, (side - size.width) // 2), (side, (side - size.height) // 2)
