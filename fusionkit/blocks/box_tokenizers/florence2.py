"""Florence-2's location tokens: 1000 cells a side, decoded at the cell's centre. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterator

from fusionkit.blocks.box_tokenizers.frame import BoxFormat, Item, Items, checked_label
from fusionkit.errors import BoxDecodeError
from fusionkit.geometry import Box, Size

CELLS = 1000
_LABEL = r"[^\W_][^<>\n,;.:]*+"
_TOKEN = r"<loc_(?:0|[1-9][0-9]{0,3})>"


class Florence2(BoxFormat):
    """`cat<loc_0><loc_12><loc_500><loc_999>` in the order x0 y0 x1 y1, more boxes of the same label following.

    A number is floor(1000 x / W), at most 999, decoded (k + 1/2) W / 1000; Florence's own processor then cuts the
    fraction off, which is not done here. Points are not in the format: two tokens. Pieces without a label are
    divided by commas. Error: W / 2000 pixels.

    Example:
        >>> from fusionkit.blocks.box_tokenizers.specs import Florence2Config
        >>> Florence2(Florence2Config()).encode(Box(0, 0, 320, 480, "cat"), Size(640, 480))
        'cat<loc_0><loc_0><loc_500><loc_999>'
    """

    # A label starts after a mark that no label holds, so the search for it never runs over the same text twice.
    pattern = re.compile(rf"(?:(?<![^<>\n,;.:])({_LABEL}))?{_TOKEN}(?:\s*+{_TOKEN})*+")
    stray = re.compile(r"<loc_[0-9]*+>?")

    def steps(self, size: Size) -> tuple[int, int]:
        return CELLS - 1, CELLS - 1

    def tolerance(self, size: Size) -> tuple[float, float]:
        return size.width / (2 * CELLS), size.height / (2 * CELLS)

    def vocabulary(self) -> tuple[str, ...]:
        return self.coordinates()

    def coordinates(self) -> tuple[str, ...]:
        return tuple(f"<loc_{number}>" for number in range(CELLS))

    def number(self, x: float, axis: int, size: Size) -> int:
        above, below = float(x).as_integer_ratio()
        return min(above * CELLS // (below * (size.width, size.height)[axis]), CELLS - 1)

    def coordinate(self, number: float, axis: int, size: Size) -> float:
        return (2 * number + 1) * (size.width, size.height)[axis] / (2 * CELLS)

    def write(self, group: Items, label: str, size: Size) -> str:
        named = checked_label(label, re.compile(_LABEL), self.config.type)
        runs = ["".join(f"<loc_{number}>" for number in self.numbers(item, size)) for item in group]
        return named + "".join(runs) if isinstance(group[0], Box) else self.join([named + run for run in runs])

    def join(self, pieces: list[str]) -> str:
        return "".join("," * (number > 0 and piece.startswith("<")) + piece for number, piece in enumerate(pieces))

    def read(self, match: re.Match[str], size: Size) -> Iterator[Item]:
        numbers = [int(number) for number in re.findall(r"<loc_([0-9]+)>", match.group())]
        width = 2 if len(numbers) == 2 else 4
        if len(numbers) % width:
            raise BoxDecodeError(f"{match.group()[:120]!r}: expected boxes of 4 tokens or one point of 2")
        for at in range(0, len(numbers), width):
            yield self.item(numbers[at : at + width], size, (match[1] or "").strip())
