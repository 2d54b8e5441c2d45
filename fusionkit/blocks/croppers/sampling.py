"""From a region of a picture to the pixels a stream reads. numpy and Pillow are imported inside the functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import ceil, floor
from typing import TYPE_CHECKING, Any

from fusionkit.blocks.croppers.coverage import covered_pixels
from fusionkit.blocks.croppers.specs import SamplingConfig
from fusionkit.errors import DataError
from fusionkit.geometry import Box
from fusionkit.plugin import EncoderInfo

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    Array = NDArray[np.float32]
    Bytes = NDArray[np.uint8]


def crop(
    picture: Image,
    regions: Sequence[Box],
    streams: Mapping[str, EncoderInfo],
    config: SamplingConfig,
    via: tuple[int, int] | None = None,
) -> Mapping[str, Array]:
    """Resample every region to every stream's own input size, and normalise by its own statistics.

    `regions` are in pixels of `picture`; what lies outside it is black. Streams of equal input size share the work.
    With `via`, regions are sampled at that size, and streams of other sizes resample those crops.
    """
    import numpy as np

    if picture.mode != "RGB":
        raise DataError(
            f"expected an RGB picture, got mode {picture.mode}; open it with fusionkit.pictures.open_picture"
        )
    sampled: dict[tuple[int, int], NDArray[Any]] = {}

    def at(size: tuple[int, int]) -> NDArray[Any]:
        """Grey levels [C, H, W, 3]."""
        if size not in sampled:
            if via is None or size == via:
                sampled[size] = np.stack([sample(picture, region, size, config) for region in regions])
            else:
                sampled[size] = np.stack([_resampled(levels, size) for levels in at(via)])
        return sampled[size]

    pixels: dict[str, Array] = {}
    for name, info in streams.items():
        scale, shift = _statistics(info.mean, info.std)
        pixels[name] = np.ascontiguousarray((at(info.input_size) * scale + shift).transpose(0, 3, 1, 2))
    return pixels


def _resampled(levels: Bytes, size: tuple[int, int]) -> Array:
    """A crop at another size, bilinear with antialias, not rounded: what torch's interpolate does to its pixels."""
    import numpy as np
    from PIL import Image as Pillow

    channels = [
        Pillow.fromarray(levels[..., channel].astype(np.float32)).resize(size[::-1], Pillow.Resampling.BILINEAR)
        for channel in range(3)
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)


def sample(picture: Image, region: Box, size: tuple[int, int], config: SamplingConfig) -> Bytes:
    """One region as uint8 [H, W, 3]; pixels whose centre lies outside the picture are black."""
    import numpy as np

    height, width = size
    if picture.size == (width, height) and (region.x0, region.y0, region.x1, region.y1) == (0, 0, width, height):
        return np.asarray(picture)
    left, right = covered_pixels(region.x0, region.x1, width, picture.width)
    top, bottom = covered_pixels(region.y0, region.y1, height, picture.height)
    across, down = (region.x1 - region.x0) / width, (region.y1 - region.y0) / height
    part = (
        region.x0 + left * across,
        region.y0 + top * down,
        region.x0 + right * across,
        region.y0 + bottom * down,
    )
    read = _antialiased if config.antialias else _two_taps
    if (left, top, right, bottom) == (0, 0, width, height):
        return read(picture, part, size, config)
    canvas: Bytes = np.zeros((height, width, 3), np.uint8)
    if right > left and bottom > top:
        canvas[top:bottom, left:right] = read(picture, part, (bottom - top, right - left), config)
    return canvas


def _antialiased(
    picture: Image, part: tuple[float, float, float, float], size: tuple[int, int], config: SamplingConfig
) -> Bytes:
    """Pillow's resize of a fractional box, which reads across the box's border where the picture goes on.

    Channels are resized as floats and rounded once: Pillow's 8-bit resize rounds and clips between its two passes,
    which is off by several grey levels beside hard edges.
    """
    import numpy as np
    from PIL.Image import Resampling

    x0, y0, x1, y1 = part
    kernel, taps = (Resampling.BICUBIC, 2) if config.resample == "bicubic" else (Resampling.BILINEAR, 1)
    reach_x, reach_y = taps * max(1.0, (x1 - x0) / size[1]) + 1, taps * max(1.0, (y1 - y0) / size[0]) + 1
    left, top = max(0, floor(x0 - reach_x)), max(0, floor(y0 - reach_y))
    right, bottom = min(picture.width, ceil(x1 + reach_x)), min(picture.height, ceil(y1 + reach_y))
    near = picture.crop((left, top, right, bottom))  # only what the kernel reaches is turned into floats
    box = (max(0.0, x0) - left, max(0.0, y0) - top, min(picture.width, x1) - left, min(picture.height, y1) - top)
    channels = [np.asarray(channel.convert("F").resize((size[1], size[0]), kernel, box)) for channel in near.split()]
    levels: Bytes = np.clip(np.rint(np.stack(channels, axis=-1)), 0, 255).astype(np.uint8)
    return levels


def _two_taps(
    picture: Image, part: tuple[float, float, float, float], size: tuple[int, int], config: SamplingConfig
) -> Bytes:
    """Bilinear interpolation between the two nearest pixels per axis, however much the picture shrinks."""
    import numpy as np

    x0, y0, x1, y1 = part
    pixels = np.asarray(picture)
    rows, next_rows, down = _taps(y0, y1, size[0], picture.height)
    columns, next_columns, across = _taps(x0, x1, size[1], picture.width)
    down, across = down[:, None, None], across[None, :, None]
    upper = pixels[rows][:, columns] * (1 - across) + pixels[rows][:, next_columns] * across
    lower = pixels[next_rows][:, columns] * (1 - across) + pixels[next_rows][:, next_columns] * across
    levels: Bytes = np.rint(upper * (1 - down) + lower * down).astype(np.uint8)
    return levels


def _taps(start: float, stop: float, count: int, length: int) -> tuple[Any, Any, Any]:
    """The pixels on both sides of each of `count` equally spaced centres, and the share of the second."""
    import numpy as np

    places = start + (np.arange(count) + 0.5) * ((stop - start) / count) - 0.5
    places = np.clip(places, 0, length - 1)
    low = places.astype(np.int64)
    return low, np.minimum(low + 1, length - 1), places - low


@lru_cache(maxsize=64)
def _statistics(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[Array, Array]:
    """(x / 255 - mean) / std as one multiplication and one addition."""
    import numpy as np

    spread = np.asarray(std, np.float64)
    return (1 / (255 * spread)).astype(np.float32), (-np.asarray(mean, np.float64) / spread).astype(np.float32)
