"""Whole pixels in text, as the released CoME-VL code trains on. Torch-free.

A number is round-half-even(x) in pixels of the original picture. Points are not in the release; they follow the same
pattern between their own tags.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from fusionkit.blocks.box_tokenizers.frame import BoxFormat, Item, Items, digits
from fusionkit.geometry import Box, Size

_NUMBER = r"-?[0-9]{1,6}(?:\.[0-9]{1,6})?"
_FOUR = rf"\[\s*+{_NUMBER}(?:\s*+,\s*+{_NUMBER}){{3}}\s*+\]"
_TWO = rf"\[\s*+{_NUMBER}\s*+,\s*+{_NUMBER}\s*+\]"


class PixelText(BoxFormat):
    """`<box> [x0, y0, x1, y1], [x0, y0, x1, y1] </box>`, or bare brackets; `<point> [x, y] </point>`.

    Lenient parsing takes bare brackets of four numbers and decimals, and moves what lies outside the picture to its
    edge. Error: half a pixel.

    Example:
        >>> from fusionkit.blocks.box_tokenizers.specs import PixelTextConfig
        >>> PixelText(PixelTextConfig()).encode(Box(1.2, 2, 30.5, 40), Size(64, 48))
        '<box> [1, 2, 30, 40] </box>'
    """

    pattern = re.compile(
        rf"<box>\s*+{_FOUR}(?:\s*+,\s*+{_FOUR})*+\s*+</box>|<point>\s*+{_TWO}(?:\s*+,\s*+{_TWO})*+\s*+</point>"
        rf"|{_FOUR}(?:,\s*+{_FOUR})*+"
    )
    stray = re.compile(r"<(?:box|point)>[^<]*+(?:</(?:box|point)>)?|</(?:box|point)>")
    clips = True

    def steps(self, size: Size) -> tuple[int, int]:
        return size.width, size.height

    def write(self, group: Items, label: str, size: Size) -> str:
        brackets = ", ".join(f"[{', '.join(map(str, self.numbers(item, size)))}]" for item in group)
        if isinstance(group[0], Box):
            return f"<box> {brackets} </box>" if self.config.tags else brackets
        return f"<point> {brackets} </point>"

    def join(self, pieces: list[str]) -> str:
        return " ".join(pieces)

    def read(self, match: re.Match[str], size: Size) -> Iterator[Item]:
        for bracket in re.findall(r"\[[^\]]*\]", match.group()):
            yield self.item([digits(number) for number in re.findall(_NUMBER, bracket)], size)
