"""Checks of tensors against what was planned, with errors that name the block."""

from __future__ import annotations

from torch import Tensor

from fusionkit.errors import ShapeError


def require_width(x_BND: Tensor, width: int, address: str) -> None:
    """Raise ShapeError unless the last axis has the planned width."""
    if x_BND.shape[-1] != width:
        raise ShapeError(
            f"{address or 'block'}: expected tokens of width {width}, got {x_BND.shape[-1]}",
            hint="build the block for the width it gets, or add a linear adapter before it",
        )
