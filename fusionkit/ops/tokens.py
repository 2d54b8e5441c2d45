"""The one thing that crosses block boundaries besides lists of layers: tokens with their grid and frame."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from fusionkit.errors import ShapeError
from fusionkit.geometry import FULL, Frame, Grid, TokenSpec


class Tokens(NamedTuple):
    """Tokens of a batch of crops.

    Shapes: x_BND float; valid_BN bool, True where a token is real (None: all are); coverage_BN float, the share of a
    token's cell that the picture covers, 1 inside it and 0 in padding (None: see `coverage`). N is `copies` grids,
    row-major, one after the other or `interleaved` (see TokenSpec).

    Validity says who takes part, coverage only what a cell shows: the released CoME-VL code marks padding and attends
    to it all the same. Pooling averages coverage; joining grids on the token axis drops it.
    """

    x_BND: Tensor
    grid: Grid
    frame: Frame = FULL
    valid_BN: Tensor | None = None
    copies: int = 1
    interleaved: bool = False
    coverage_BN: Tensor | None = None

    @property
    def spec(self) -> TokenSpec:
        return TokenSpec(self.grid, self.x_BND.shape[-1], self.frame, self.copies, self.interleaved)

    def with_x(self, x_BND: Tensor) -> Tokens:
        """The same places with other vectors; N must not change."""
        if x_BND.shape[:-1] != self.x_BND.shape[:-1]:
            raise ShapeError(f"expected {tuple(self.x_BND.shape[:-1])} tokens, got {tuple(x_BND.shape[:-1])}")
        return self._replace(x_BND=x_BND)

    def coverage(self) -> Tensor:
        """coverage_BN; where none is given, 1 for valid tokens and 0 for others."""
        if self.coverage_BN is not None:
            return self.coverage_BN
        ones_BN = self.x_BND.new_ones(self.x_BND.shape[:2])
        return ones_BN if self.valid_BN is None else self.valid_BN.to(ones_BN.dtype)
