"""The arithmetic of overlapping tiles: how many, which region each sees, which of its tokens count. Torch-free.

A tile is `size` pixels of a canvas. Neighbours are `window = size - margins` apart, so margins are seen twice; each
token is kept from the tile in which it lies furthest from the border.
"""

from __future__ import annotations

import math
import struct
from functools import lru_cache

from fusionkit.errors import ShapeError
from fusionkit.geometry import Box, Grid, Size
from fusionkit.plugin import IMAGE_TOKEN, TokenLayout

START, END, ROW = "<im_start>", "<im_end>", "<im_col>"
"""Around a block of visual tokens, and after each of its rows."""


def tilings(most: int) -> list[tuple[int, int]]:
    """All (rows, columns) with at most `most` tiles, fewest tiles first, then fewest rows."""
    found = [(rows, columns) for rows in range(1, most + 1) for columns in range(1, most // rows + 1)]
    return sorted(found, key=lambda tiling: (tiling[0] * tiling[1], tiling[0]))


def choose_tiling(size: Size, window: int, margin: int, most: int) -> tuple[int, int]:
    """The (rows, columns) that enlarge the picture least, or shrink it least where none enlarges it.

    The scale of a tiling is how much the picture grows to fill it. Scales are compared in single precision, as the
    released models were trained, so that pictures of more than about 4000 pixels break ties alike.
    """
    candidates = tilings(most)
    scales = [
        min(_single(rows * window, size.height - margin), _single(columns * window, size.width - margin))
        for rows, columns in candidates
    ]
    growing = [scale for scale in scales if scale >= 1]
    return candidates[scales.index(min(growing) if growing else max(scales))]


def _single(numerator: int, denominator: int) -> float:
    """The quotient rounded to float32; a side that the margins use up needs no tile (infinity)."""
    if denominator == 0:
        return math.inf
    return float(struct.unpack("f", struct.pack("f", numerator / denominator))[0])


def stretched(region: Box, canvas: Size, picture: Size) -> Box:
    """A region of the canvas in pixels of a picture that fills it."""
    x, y = picture.width / canvas.width, picture.height / canvas.height
    return Box(region.x0 * x, region.y0 * y, region.x1 * x, region.y1 * y)


def letterboxed(region: Box, canvas: Size, picture: Size) -> Box:
    """A region of the canvas in pixels of a picture that lies in its middle, scaled alike in both directions.

    The scaled picture has whole pixels (rounded down) and stands at whole pixels, as in the released models.
    """
    scale = min(_single(canvas.height, picture.height), _single(canvas.width, picture.width))
    width, height = (max(1, int(_rounded(side * scale))) for side in (picture.width, picture.height))
    left, top = (canvas.width - width) // 2, (canvas.height - height) // 2
    x, y = picture.width / width, picture.height / height
    return Box((region.x0 - left) * x, (region.y0 - top) * y, (region.x1 - left) * x, (region.y1 - top) * y)


def _rounded(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


def tokens_in_margins(grid: Grid, patches: int, margins: tuple[int, int]) -> tuple[int, int, int, int]:
    """Tokens in the (top, bottom, left, right) margins of a tile's grid; ShapeError unless they are whole."""
    found = []
    for side in (grid.height, grid.width):
        for margin in margins:
            if margin * side % patches:
                whole = patches // math.gcd(side, patches)
                raise ShapeError(
                    f"margins of {list(margins)} patches in a tile of {patches} are not whole tokens of its {grid} grid",
                    field="margin_patches",
                    hint=f"use multiples of {whole}",
                )
            found.append(margin * side // patches)
    top, bottom, left, right = found
    return top, bottom, left, right


def block_tokens(grid: Grid) -> int:
    """Tokens of a block of visual tokens with its row, start and end tokens."""
    return grid.height * (grid.width + 1) + 2


@lru_cache(maxsize=256)
def tile_layout(
    rows: int, columns: int, grid: Grid, margins: tuple[int, int, int, int], global_view: bool
) -> TokenLayout:
    """The global view's block, if any, then all tiles as one picture in raster order.

    `margins` are in tokens, as from `tokens_in_margins`.
    """
    symbols: list[str] = []
    patches: list[int] = []
    if global_view:
        _add_block(symbols, patches, [list(range(r * grid.width, (r + 1) * grid.width)) for r in range(grid.height)])
    top, bottom, left, right = margins
    first = int(global_view)
    lines = [
        [
            (first + tile_row * columns + tile_column) * grid.tokens + row * grid.width + column
            for tile_column, column in _kept(columns, grid.width, left, right)
        ]
        for tile_row, row in _kept(rows, grid.height, top, bottom)
    ]
    _add_block(symbols, patches, lines)
    return TokenLayout(first + rows * columns, tuple(symbols), tuple(patches))


def _kept(tiles: int, length: int, before: int, after: int) -> list[tuple[int, int]]:
    """(tile, place in the tile) of the places kept along one axis: margins only where there is no neighbour."""
    return [
        (tile, place)
        for tile in range(tiles)
        for place in range(before if tile else 0, length - (after if tile < tiles - 1 else 0))
    ]


def _add_block(symbols: list[str], patches: list[int], lines: list[list[int]]) -> None:
    symbols.append(START)
    for line in lines:
        symbols += [IMAGE_TOKEN] * len(line) + [ROW]
        patches += line
    symbols.append(END)
