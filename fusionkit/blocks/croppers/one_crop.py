"""What the croppers that give one crop share: every token of its grid is the language model's."""

from __future__ import annotations

from fusionkit.geometry import Grid, Size
from fusionkit.plugin import IMAGE_TOKEN, TokenLayout


class OneCrop:
    """Token layout of a picture that is one crop, whatever its size."""

    def special_tokens(self) -> tuple[str, ...]:
        return (IMAGE_TOKEN,)

    def layout(self, size: Size, grid: Grid) -> TokenLayout:
        """`grid` tokens in raster order, those of padding included."""
        return TokenLayout(1, (IMAGE_TOKEN,) * grid.tokens, tuple(range(grid.tokens)))

    def largest_layout(self, grid: Grid) -> TokenLayout:
        return self.layout(Size(1, 1), grid)
