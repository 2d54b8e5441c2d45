"""Windows of a token grid: W windows of S = rows * columns tokens each, both row-major."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fusionkit.geometry import Grid
from fusionkit.ops.tokens import Tokens


def split_windows(x_BND: Tensor, grid: Grid, window: tuple[int, int]) -> Tensor:
    """Cut a grid into windows that do not overlap; zeros (False) fill it up to the right and at the bottom.

    Shapes: [B, N, D] -> [B, W, S, D].
    """
    rows, columns = window
    down, right = -grid.height % rows, -grid.width % columns
    batch, width = x_BND.shape[0], x_BND.shape[2]
    x_BHWD = x_BND.reshape(batch, grid.height, grid.width, width)
    if down or right:
        x_BHWD = F.pad(x_BHWD, (0, 0, 0, right, 0, down))
    pooled = ((grid.height + down) // rows, (grid.width + right) // columns)
    x_BhrwcD = x_BHWD.reshape(batch, pooled[0], rows, pooled[1], columns, width)
    return x_BhrwcD.transpose(2, 3).reshape(batch, pooled[0] * pooled[1], rows * columns, width)


def pooled_coverage(tokens: Tokens, window: tuple[int, int]) -> Tensor | None:
    """Coverage of the windows: the mean of their cells', what fills the grid up counting as not covered."""
    if tokens.coverage_BN is None:
        return None
    return split_windows(tokens.coverage_BN[..., None], tokens.grid, window).mean(2)[..., 0]
