"""Maps over pictures: heat, the outline of the strongest part, components as colours.

A map is a float array [h, w] over the token grid of a crop; it is enlarged to the picture with smooth interpolation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Map = NDArray[np.float32]
Picture = Image.Image

SHARE = 0.3
"""The strongest part that is outlined, as in the paper's Figure 2."""

TILE = 224
"""Longer side of a picture in a sheet, px."""

_STOPS = np.array([[0, 0, 4], [60, 9, 101], [150, 38, 103], [222, 73, 74], [251, 155, 6], [252, 255, 164]], np.float32)
"""Dark to bright in equal steps of lightness: order is seen without a legend, and in grey."""

_LINE = (57, 255, 20)


def fit(picture: Picture, side: int = TILE) -> Picture:
    """The picture with its longer side at `side`."""
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def enlarge(values: Map, size: tuple[int, int]) -> Map:
    """A map at (width, height), bilinear between the centres of its cells."""
    image = Image.fromarray(np.asarray(values, np.float32), mode="F")
    found: Map = np.asarray(image.resize(size, Image.Resampling.BILINEAR), np.float32)
    return found


def unit(values: Map) -> Map:
    """Scaled to 0..1 between the 1st and the 98th percentile: one patch that outshines all others does not hide them.

    A flat map is 0.5 everywhere, for it says nothing of anywhere.
    """
    low, high = (float(value) for value in np.percentile(values, (1, 98)))
    if not high > low:
        low, high = float(values.min()), float(values.max())
    if not high > low:
        return np.full_like(values, 0.5)
    scaled: Map = np.clip((values - low) / (high - low), 0, 1)
    return scaled


def ramp(values: Map) -> NDArray[np.uint8]:
    """0..1 as colours [h, w, 3]."""
    place = np.clip(values, 0, 1) * (len(_STOPS) - 1)
    low = np.minimum(place.astype(int), len(_STOPS) - 2)
    part = (place - low)[..., None]
    found: NDArray[np.uint8] = np.rint(_STOPS[low] * (1 - part) + _STOPS[low + 1] * part).astype(np.uint8)
    return found


def heat(picture: Picture, values: Map, strength: float = 0.6) -> Picture:
    """A map laid over a picture, from its lowest values (dark) to its highest (bright), see `unit`."""
    colours = Image.fromarray(ramp(unit(enlarge(values, picture.size))))
    grey = picture.convert("L").convert("RGB")
    return Image.blend(grey, colours, strength)


def top_mask(values: Map, share: float = SHARE) -> NDArray[np.bool_]:
    """Where a map is among its highest `share` of places; of equal ones the first in reading order."""
    count = max(1, round(share * values.size))
    order = np.argsort(-values, axis=None, kind="stable")
    mask = np.zeros(values.size, bool)
    mask[order[:count]] = True
    return mask.reshape(values.shape)


def outline(picture: Picture, values: Map, share: float = SHARE) -> Picture:
    """The picture with its strongest `share` outlined and the rest dimmed."""
    mask = Image.fromarray((top_mask(enlarge(values, picture.size), share) * 255).astype(np.uint8))
    dimmed = Image.blend(picture, Image.new("RGB", picture.size, (20, 20, 24)), 0.62)
    shown = Image.composite(picture, dimmed, mask)
    width = max(3, round(min(picture.size) / 60) | 1)
    edge = np.asarray(mask.filter(ImageFilter.MaxFilter(width))) != np.asarray(mask)
    shown.paste(_LINE, mask=Image.fromarray((edge * 255).astype(np.uint8)))
    return shown


def colours(values: NDArray[Any], size: tuple[int, int]) -> Picture:
    """Three components in 0..1, [h, w, 3], as red, green and blue at (width, height); cells stay visible."""
    rgb = np.rint(np.clip(np.asarray(values, np.float32), 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(rgb).resize(size, Image.Resampling.NEAREST)
