"""Kosmos-2's patch indices: two cells of a coarse grid per box. Torch-free.

With P cells a side, the upper left corner lies in column floor(x0 P / W) and the lower right one in column
ceil(x1 P / W - 1), rows alike; index = row * P + column. Decoding gives the cells' outer edges when the two share a
row or column, else their centres.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from fusionkit.blocks.box_tokenizers.frame import BoxFormat, Item, Items, checked_label
from fusionkit.errors import BoxDecodeError
from fusionkit.geometry import Box, Point, Size

_DELIMITER = "</delimiter_of_multi_objects/>"
_TOKEN = r"<patch_index_[0-9]{4}>"
_LABEL = re.compile(r"[^<>\n]+")


class Kosmos2(BoxFormat):
    """`<phrase>cat</phrase><object><patch_index_0044><patch_index_0863></object>`, more boxes after a delimiter.

    Unlike Kosmos-2's own encoder, a right or bottom edge is never outside the grid, and a box without area covers the
    cell it lies in. Points are not in the format: one cell, decoded at its centre. Error: one cell, W / P pixels.

    Example:
        >>> from fusionkit.blocks.box_tokenizers.specs import Kosmos2Config
        >>> Kosmos2(Kosmos2Config()).encode(Box(0, 0, 320, 480, "cat"), Size(640, 480))
        '<phrase>cat</phrase><object><patch_index_0000><patch_index_1007></object>'
    """

    pattern = re.compile(
        rf"(?:<phrase>([^<>]*+)</phrase>\s*+)?<object>\s*+{_TOKEN}(?:(?:\s|{_DELIMITER})*+{_TOKEN})*+\s*+</object>"
    )
    stray = re.compile(
        rf"<object>(?:\s|{_TOKEN}|{_DELIMITER})*+(?:</object>)?|</object>|{_TOKEN}|<patch_index_[^<>]*+>?"
    )

    def steps(self, size: Size) -> tuple[int, int]:
        return self.config.patches, self.config.patches

    def tolerance(self, size: Size) -> tuple[float, float]:
        return size.width / self.config.patches, size.height / self.config.patches

    def vocabulary(self) -> tuple[str, ...]:
        cells = (f"<patch_index_{index:04d}>" for index in range(self.config.patches**2))
        return "<object>", "</object>", "<phrase>", "</phrase>", _DELIMITER, *cells

    def write(self, group: Items, label: str, size: Size) -> str:
        named = f"<phrase>{checked_label(label, _LABEL, self.config.type)}</phrase>" if label else ""
        cells = (self._cells(self.numbers(item, size)) for item in group)
        inner = _DELIMITER.join("".join(f"<patch_index_{index:04d}>" for index in indices) for indices in cells)
        return f"{named}<object>{inner}</object>"

    def numbers(self, item: Item, size: Size) -> tuple[int, ...]:
        """Columns and rows: those of a box's two cells, or of a point's one."""
        first = _columns((item.x0, item.y0) if isinstance(item, Box) else (item.x, item.y), size, self.config.patches)
        if isinstance(item, Point):
            return first
        last = _columns((item.x1, item.y1), size, self.config.patches, upper=True)
        return *first, *map(max, first, last)

    def read(self, match: re.Match[str], size: Size) -> Iterator[Item]:
        side = self.config.patches
        for piece in match.group().split(_DELIMITER):
            indices = [int(index) for index in re.findall(r"<patch_index_([0-9]{4})>", piece)]
            if len(indices) not in (1, 2) or max(indices) >= side**2:
                raise BoxDecodeError(f"{piece[:120]!r}: expected 1 or 2 patch indices from 0 to {side**2 - 1}")
            places = [(index % side, index // side) for index in indices]
            yield _decoded(places, size, side, (match[1] or "").strip())

    def _cells(self, numbers: tuple[int, ...]) -> list[int]:
        return [y * self.config.patches + x for x, y in zip(numbers[::2], numbers[1::2], strict=True)]


def _columns(corner: tuple[float, float], size: Size, cells: int, upper: bool = False) -> tuple[int, int]:
    """The column and row that a corner lies in; for an upper corner, a border belongs to the cell before it."""
    found = []
    for x, side in zip(corner, (size.width, size.height), strict=True):
        above, below = float(min(max(x, 0), side)).as_integer_ratio()
        cell = -(-above * cells // (below * side)) - 1 if upper else above * cells // (below * side)
        found.append(min(max(cell, 0), cells - 1))
    return found[0], found[1]


def _decoded(places: list[tuple[int, int]], size: Size, cells: int, label: str) -> Item:
    def half_cells(x: int, y: int) -> tuple[float, float]:
        return x * size.width / (2 * cells), y * size.height / (2 * cells)

    if len(places) == 1:
        ((column, row),) = places
        return Point(*half_cells(2 * column + 1, 2 * row + 1), label)
    left, right = sorted(column for column, _ in places)
    top, bottom = sorted(row for _, row in places)
    if left == right or top == bottom:
        return Box(*half_cells(2 * left, 2 * top), *half_cells(2 * right + 2, 2 * bottom + 2), label)
    return Box(*half_cells(2 * left + 1, 2 * top + 1), *half_cells(2 * right + 1, 2 * bottom + 1), label)
