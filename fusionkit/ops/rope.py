"""Rotary positions: coordinates of a grid, phases, rotations.

Pairs of channels turn by an angle proportional to a token's coordinate, so the product of a rotated query and a
rotated key depends on their difference only. Coordinates are in sides of the crop (0 left or top, 1 right or
bottom), so grids of different sizes over one crop share phases wherever they share places. B batch, H heads,
N tokens, K head width, F = K / 2 phases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fusionkit.geometry import Frame, Grid

Placement = Literal["cell_centres", "corner_aligned"]


class Phases(NamedTuple):
    """Cosines and sines of the rotation angles.

    Shapes: cos_NF, sin_NF, or anything that broadcasts against x_BHNK with F = K / 2 in place of K.
    """

    cos: Tensor
    sin: Tensor

    @classmethod
    def of(cls, angle: Tensor, dtype: torch.dtype) -> Phases:
        """Cosines and sines taken in the angle's own type, kept in `dtype`."""
        return cls(torch.cos(angle).to(dtype), torch.sin(angle).to(dtype))


def table_dtype(x: Tensor) -> torch.dtype:
    """The type to keep angles and rotate in: float64 for float64 tokens, else float32 (never half precision)."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def grid_coordinates(grid: Grid, frame: Frame, placement: Placement, device: torch.device) -> Tensor:
    """(y, x) of every token of a grid.

    Shapes: [N, 2], row-major. Units: sides of the crop; float64 where the device has it.
    """
    y = _axis(grid.height, frame.y0, frame.y1, placement, device)
    x = _axis(grid.width, frame.x0, frame.x1, placement, device)
    return torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).reshape(-1, 2)


def _axis(count: int, start: float, end: float, placement: Placement, device: torch.device) -> Tensor:
    step = torch.arange(count, device=device, dtype=_exact(device))
    if placement == "cell_centres":
        return start + (step + 0.5) * ((end - start) / count)
    return start + step * ((end - start) / max(count - 1, 1))


def _exact(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def geometric_wavelengths(shortest: float, longest: float, count: int, device: torch.device) -> Tensor:
    """`count` wavelengths in equal ratios from `shortest` to `longest`; one alone is the longest. Shape [count]."""
    share = torch.arange(count, device=device, dtype=_exact(device)) / max(count - 1, 1)
    if count == 1:
        share = share + 1
    return torch.exp(math.log(shortest) + share * (math.log(longest) - math.log(shortest)))


def axis_wavelengths(
    views: Sequence[tuple[Grid, Frame]], shortest_cells: float, longest_sides: float, count: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Wavelengths for the y and the x axis that suit all grids which look at one crop.

    Shapes: two of [count]. Units: sides of the crop; the shortest is counted in cells of the finest grid.
    """
    cell_y = min((frame.y1 - frame.y0) / grid.height for grid, frame in views)
    cell_x = min((frame.x1 - frame.x0) / grid.width for grid, frame in views)
    return (
        geometric_wavelengths(shortest_cells * cell_y, longest_sides, count, device),
        geometric_wavelengths(shortest_cells * cell_x, longest_sides, count, device),
    )


def grid_angles(coordinates_N2: Tensor, wavelengths: tuple[Tensor, Tensor]) -> Tensor:
    """Angles 2π y / λ, then 2π x / λ.

    Shapes: [N, 2] and two of [F / 2] -> [N, F].
    """
    y_N1, x_N1 = coordinates_N2.chunk(2, dim=-1)
    return 2 * math.pi * torch.cat((y_N1 / wavelengths[0], x_N1 / wavelengths[1]), dim=-1)


def rotate_half_split(x_BHNK: Tensor, phases: Phases) -> Tensor:
    """Rotate the pairs (j, j + K/2).

    Equation: (a, b) -> (a cos - b sin, b cos + a sin). Computed in the type of the phases, returned in that of x.
    """
    a, b = x_BHNK.to(phases.cos.dtype).chunk(2, dim=-1)
    turned = torch.cat((a * phases.cos - b * phases.sin, b * phases.cos + a * phases.sin), dim=-1)
    return turned.to(x_BHNK.dtype)


def rotate_interleaved(x_BHNK: Tensor, phases: Phases) -> Tensor:
    """Rotate the pairs (2j, 2j + 1); otherwise as `rotate_half_split`."""
    x_BHNF2 = x_BHNK.to(phases.cos.dtype).reshape(*x_BHNK.shape[:-1], x_BHNK.shape[-1] // 2, 2)
    a, b = x_BHNF2.unbind(-1)
    turned = torch.stack((a * phases.cos - b * phases.sin, b * phases.cos + a * phases.sin), dim=-1)
    return turned.flatten(-2).to(x_BHNK.dtype)


def within_radius(query_N2: Tensor, memory_M2: Tensor, radius: float) -> Tensor:
    """Which memory places are within `radius` of which query places, the rim included. Shape [N, M], bool."""
    # Differences, not the product form: rounding must not decide who is on the rim.
    return pairwise_distance(query_N2, memory_M2) <= radius * (1 + 1e-6)


def pairwise_distance(query_N2: Tensor, memory_M2: Tensor) -> Tensor:
    """Euclidean distances. Shapes: [N, 2] and [M, 2] -> [N, M]."""
    return (query_N2[:, None, :] - memory_M2[None, :, :]).square().sum(-1).sqrt()
