"""How many tokens a picture takes, and whether they fit the sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fusionkit.geometry import Grid, Size, TokenSpec
from fusionkit.plugin import IMAGE_TOKEN, TokenLayout


class Cropper(Protocol):
    """The torch-free half of a cropper."""

    def special_tokens(self) -> tuple[str, ...]: ...

    def layout(self, size: Size, grid: Grid) -> TokenLayout: ...

    def largest_layout(self, grid: Grid) -> TokenLayout: ...


@dataclass(frozen=True, slots=True)
class Layouts:
    """A cropper's layouts for the tokens that the injectors get.

    Croppers lay out one grid per crop. Where `visual` holds several (`copies`), the vectors of one cell stand next
    to each other, in the order of the copies.
    """

    cropper: Cropper
    visual: TokenSpec

    @property
    def largest(self) -> TokenLayout:
        return self._with_copies(self.cropper.largest_layout(self.visual.grid))

    def of(self, size: Size) -> TokenLayout:
        return self._with_copies(self.cropper.layout(size, self.visual.grid))

    def _with_copies(self, layout: TokenLayout) -> TokenLayout:
        copies, cells = self.visual.copies, self.visual.grid.tokens
        if copies == 1:
            return layout
        symbols = tuple(
            copy for symbol in layout.symbols for copy in (symbol,) * (copies if symbol == IMAGE_TOKEN else 1)
        )
        patches = tuple(
            crop * cells * copies + copy * cells + cell
            for crop, cell in (divmod(patch, cells) for patch in layout.patches)
            for copy in range(copies)
        )
        return TokenLayout(layout.crops, symbols, patches)
