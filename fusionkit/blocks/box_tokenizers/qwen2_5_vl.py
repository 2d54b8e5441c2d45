"""JSON in whole pixels of the picture as Qwen2.5-VL's processor resizes it. Torch-free.

The processor rounds both sides to multiples of `factor` and keeps their product between `min_pixels` and
`max_pixels`; W' x H' is the result. A number is round-half-even(x W' / W), 0 to W'.
"""

from __future__ import annotations

from math import isqrt

from fusionkit.blocks.box_tokenizers.frame import half_even
from fusionkit.blocks.box_tokenizers.json_format import JsonFormat
from fusionkit.geometry import Size


class Qwen25Vl(JsonFormat):
    """`{"bbox_2d": [x0, y0, x1, y1], "label": "cat"}` in pixels of the resized picture.

    Numbers beyond the resized picture are moved to its edge in lenient parsing. Error: W / (2 W') pixels.

    Example:
        >>> from fusionkit.blocks.box_tokenizers.specs import Qwen25VlConfig
        >>> from fusionkit.geometry import Box
        >>> Qwen25Vl(Qwen25VlConfig()).encode(Box(0, 0, 640, 240, "cat"), Size(640, 480))  # resized to 644x476
        '{"bbox_2d": [0, 0, 644, 238], "label": "cat"}'
    """

    clips = True

    def steps(self, size: Size) -> tuple[int, int]:
        resized = resized_size(size, self.config.factor, self.config.min_pixels, self.config.max_pixels)
        return resized.width, resized.height


def resized_size(size: Size, factor: int, min_pixels: int, max_pixels: int) -> Size:
    """The size Qwen2.5-VL's processor gives a picture, in exact integers.

    Pictures more than 200 times as long as wide, which that processor refuses, follow the same rule.
    """
    sides = (size.width, size.height)
    width, height = (max(factor, half_even(side, factor) * factor) for side in sides)
    if width * height > max_pixels:
        width, height = (max(factor, _floor_root(side, other, factor, max_pixels)) for side, other in _both(size))
    elif width * height < min_pixels:
        width, height = (_ceil_root(side, other, factor, min_pixels) for side, other in _both(size))
    return Size(width, height)


def _both(size: Size) -> tuple[tuple[int, int], tuple[int, int]]:
    return (size.width, size.height), (size.height, size.width)


def _floor_root(side: int, other: int, factor: int, pixels: int) -> int:
    """floor(side sqrt(pixels / (side other)) / factor) factor."""
    return isqrt(side * pixels // (other * factor**2)) * factor


def _ceil_root(side: int, other: int, factor: int, pixels: int) -> int:
    """ceil(side sqrt(pixels / (side other)) / factor) factor."""
    root = isqrt(side * pixels // (other * factor**2))
    return (root + (root**2 * other * factor**2 < side * pixels)) * factor
