"""What the connectors that join inputs of one grid share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fusionkit.errors import ShapeError
from fusionkit.ops.shapes import require_width
from fusionkit.ops.tokens import Tokens


def require_one_grid(parts: Sequence[Tokens], widths: Sequence[int], address: str) -> Tokens:
    """The first of `parts`; raises ShapeError unless all lie on its grid and frame and have the planned widths."""
    first = parts[0]
    for part, width in zip(parts, widths, strict=True):
        require_width(part.x_BND, width, address)
        if (part.grid, part.frame) != (first.grid, first.frame):
            raise ShapeError(
                f"{address or 'block'}: expected all inputs on the grid {first.grid}, got {part.grid}",
                hint="pool or resize to one grid first, and give all inputs one frame",
            )
    return first


def validity(parts: Sequence[Tokens]) -> list[Tensor] | None:
    """valid_BN of every part, or None when no part has invalid tokens."""
    if all(part.valid_BN is None for part in parts):
        return None
    return [
        part.x_BND.new_ones(part.x_BND.shape[:2]).bool() if part.valid_BN is None else part.valid_BN for part in parts
    ]
