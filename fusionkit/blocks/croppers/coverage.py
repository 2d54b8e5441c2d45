"""How much of each token's cell the picture fills, in crops that reach outside it. Torch- and numpy-free."""

from __future__ import annotations

from math import ceil

from fusionkit.geometry import Box, Size
from fusionkit.plugin import EncoderInfo


def covered_pixels(start: float, stop: float, pixels: int, length: int) -> tuple[int, int]:
    """First and one past the last of `pixels` between `start` and `stop` whose centre is within 0..length."""
    step = (stop - start) / pixels
    first = max(0, ceil(-start / step - 0.5 - 1e-9))
    last = min(pixels, ceil((length - start) / step - 0.5 - 1e-9))
    return first, last


def reaches_outside(region: Box, picture: Size) -> bool:
    """Whether a region leaves the picture by more than rounding."""
    slack = 1e-6
    return (
        region.x0 < -slack
        or region.y0 < -slack
        or region.x1 > picture.width + slack
        or region.y1 > picture.height + slack
    )


def cell_coverage(region: Box, picture: Size, info: EncoderInfo) -> tuple[float, ...]:
    """The share of every token's pixels that show the picture, row-major; the other pixels are padding.

    Counted in whole pixels of the stream's input, as they are sampled: 1 and 0 are exact.

    Units: `region` in pixels of the picture.
    """
    (height, width), (down, right) = info.input_size, info.stride
    rows = _shares(*covered_pixels(region.y0, region.y1, height, picture.height), down, info.grid.height)
    columns = _shares(*covered_pixels(region.x0, region.x1, width, picture.width), right, info.grid.width)
    return tuple(row * column for row in rows for column in columns)


def _shares(first: int, last: int, stride: int, cells: int) -> list[float]:
    """The share of each cell's pixels that are in first..last, along one axis."""
    starts = range(0, cells * stride, stride)
    return [max(0, min(last, start + stride) - max(first, start)) / stride for start in starts]
