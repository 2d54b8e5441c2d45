"""Overlapping tiles and a view of the whole picture, after Molmo (arXiv 2409.17146, Section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fusionkit.blocks.croppers import tiling
from fusionkit.blocks.croppers.crops import Crops
from fusionkit.blocks.croppers.sampling import crop
from fusionkit.blocks.croppers.specs import OverlapTilesConfig
from fusionkit.geometry import Box, Grid, Size
from fusionkit.plugin import IMAGE_TOKEN, BlockSite, EncoderInfo, TokenLayout

if TYPE_CHECKING:
    from PIL.Image import Image


class OverlapTiles:
    """Crops: the global view first (if wanted), then tiles row by row.

    Every stream reads the same regions, resampled to that stream's input size from the picture itself, or, with
    `resample_from: crop`, from the crop at `size`.
    """

    def __init__(self, config: OverlapTilesConfig, site: BlockSite | None = None) -> None:
        self.config = config
        self._margin = sum(config.margin_patches) * config.patch
        self._window = config.size - self._margin

    def special_tokens(self) -> tuple[str, ...]:
        return (IMAGE_TOKEN, tiling.START, tiling.END, tiling.ROW)

    def layout(self, size: Size, grid: Grid) -> TokenLayout:
        """The tokens of a picture of `size` when a crop gives a `grid` of them; ShapeError if margins cut tokens."""
        rows, columns = self.tiling(size)
        return tiling.tile_layout(rows, columns, grid, self._margins(grid), self.config.global_view)

    def largest_layout(self, grid: Grid) -> TokenLayout:
        """The layout with the most tokens that any picture can have (every tiling is some picture's)."""
        margins = self._margins(grid)
        top, bottom, left, right = margins
        window = Grid(grid.height - top - bottom, grid.width - left - right)

        def tokens(rows_columns: tuple[int, int]) -> int:
            rows, columns = rows_columns
            whole = Grid(rows * window.height + top + bottom, columns * window.width + left + right)
            return tiling.block_tokens(whole)

        rows, columns = max(tiling.tilings(self.config.max_crops), key=tokens)
        return tiling.tile_layout(rows, columns, grid, margins, self.config.global_view)

    def tiling(self, size: Size) -> tuple[int, int]:
        """(rows, columns) of tiles for a picture."""
        return tiling.choose_tiling(size, self._window, self._margin, self.config.max_crops)

    def regions(self, size: Size) -> tuple[Box, ...]:
        """What each crop sees, in pixels of the picture."""
        place = tiling.stretched if self.config.fit == "stretch" else tiling.letterboxed
        rows, columns = self.tiling(size)
        canvas = Size(columns * self._window + self._margin, rows * self._window + self._margin)
        tile, step = self.config.size, self._window
        whole = [place(Box(0, 0, tile, tile), Size(tile, tile), size)] if self.config.global_view else []
        tiles = [
            place(Box(column * step, row * step, column * step + tile, row * step + tile), canvas, size)
            for row in range(rows)
            for column in range(columns)
        ]
        return (*whole, *tiles)

    def split(self, image: Image, streams: Mapping[str, EncoderInfo]) -> Crops:
        """Crops of an RGB picture."""
        regions = self.regions(Size(*image.size))
        side = self.config.size
        via = (side, side) if self.config.resample_from == "crop" else None
        return Crops(regions, crop(image, regions, streams, self.config, via))

    def _margins(self, grid: Grid) -> tuple[int, int, int, int]:
        return tiling.tokens_in_margins(grid, self.config.size // self.config.patch, self.config.margin_patches)
