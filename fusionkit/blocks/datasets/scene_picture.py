"""Drawing a laid-out scene with numpy: shapes from signed distances, so edges are smooth without supersampling.

Arrays are float32 [H, W, 3] in 0..1 until the last step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fusionkit.blocks.datasets.scene_layout import Thing
from fusionkit.pictures import open_picture

if TYPE_CHECKING:
    from PIL.Image import Image

Array = NDArray[np.float32]

RGB = {
    "red": (0.86, 0.14, 0.14),
    "green": (0.13, 0.62, 0.18),
    "blue": (0.15, 0.28, 0.88),
    "yellow": (0.96, 0.86, 0.12),
    "purple": (0.62, 0.18, 0.72),
    "cyan": (0.12, 0.78, 0.84),
}
_JITTER = 0.07
_COARSE = 5  # cells per side of the slowly varying background
_ARM = 0.36  # half width of a cross's arms, as a share of its half side


@dataclass(frozen=True, slots=True)
class Scene:
    """All that a picture is a function of; picklable, so samples travel to data workers undrawn."""

    seed: int
    index: int
    size: int
    things: tuple[Thing, ...]
    clutter: int = 0
    noise: float = 0.03
    photographs: tuple[Path, ...] = ()


def draw(scene: Scene) -> Image:
    """The picture of a scene, RGB."""
    from PIL import Image

    random = np.random.default_rng((scene.seed, scene.index))
    canvas = _photograph(scene, random) if scene.photographs else _gradient(scene.size, random)
    for _ in range(scene.clutter):
        _stroke(canvas, random)
    colours = random.uniform(-_JITTER, _JITTER, (len(scene.things), 3))
    for thing, jitter in zip(scene.things, colours, strict=True):
        _paint(canvas, thing, np.asarray(RGB[thing.colour]) + jitter)
    if scene.noise:
        canvas += np.float32(scene.noise) * random.standard_normal(canvas.shape, dtype=np.float32)
    np.clip(canvas, 0.0, 1.0, out=canvas)
    return Image.fromarray((canvas * 255.0 + 0.5).astype(np.uint8))


def _gradient(size: int, random: np.random.Generator) -> Array:
    """A muted, slowly varying background."""
    level = random.uniform(0.35, 0.75)
    coarse = (level + random.uniform(-0.14, 0.14, (3, _COARSE, _COARSE))).astype(np.float32)
    spread = _spread(size)
    return np.ascontiguousarray((spread @ coarse @ spread.T).transpose(1, 2, 0))


@lru_cache(maxsize=8)
def _spread(size: int) -> Array:
    """Linear interpolation from `_COARSE` knots to `size` pixel centres, as a matrix."""
    places = (np.arange(size) + 0.5) / size * (_COARSE - 1)
    return np.maximum(0.0, 1.0 - np.abs(places[:, None] - np.arange(_COARSE))).astype(np.float32)


def _photograph(scene: Scene, random: np.random.Generator) -> Array:
    """A random square part of a random photograph, in muted contrast so that objects stand out."""
    from PIL import Image

    picture = _load(scene.photographs[random.integers(len(scene.photographs))])
    side = min(picture.size) * random.uniform(0.4, 1.0)
    left, top = (random.uniform(0, length - side) for length in picture.size)
    part = picture.resize((scene.size, scene.size), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
    return np.asarray(part, dtype=np.float32) * np.float32(0.7 / 255) + np.float32(0.15)


@lru_cache(maxsize=64)
def _load(path: Path) -> Image:
    """Photographs are kept decoded, at most 512 pixels on the larger side."""
    picture = open_picture(path)
    picture.thumbnail((512, 512))
    return picture


def _stroke(canvas: Array, random: np.random.Generator) -> None:
    """A grey line segment across part of the background."""
    size = len(canvas)
    (x0, y0), length, angle = random.uniform(0, size, 2), random.uniform(0.1, 0.5) * size, random.uniform(0, np.pi)
    along_x, along_y = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    ys, xs = np.ogrid[0.5:size, 0.5:size]
    dx, dy = (xs - x0).astype(np.float32), (ys - y0).astype(np.float32)
    place = np.clip(dx * along_x + dy * along_y, 0, length)
    distance = np.hypot(dx - place * along_x, dy - place * along_y)
    alpha = 0.8 * np.clip(size / 48 * random.uniform(0.6, 1.2) + 0.5 - distance, 0, 1)[..., None]
    canvas += alpha * (np.float32(random.uniform(0.1, 0.9)) - canvas)


def _paint(canvas: Array, thing: Thing, colour: Any) -> None:
    alpha, shade = _mask(thing.shape, thing.side), _shade(thing.fill, thing.side)
    part = canvas[thing.y : thing.y + thing.side, thing.x : thing.x + thing.side]
    part += alpha * (shade * colour.astype(np.float32) - part)


@lru_cache(maxsize=1024)
def _mask(shape: str, side: int) -> Array:
    """Coverage [side, side, 1] of a shape that touches all four sides of its box.

    With u, v in -1..1 across the box, each shape is the set where a distance is negative; one pixel of that
    distance is blended.
    """
    u, v = _box_coordinates(side)
    if shape == "circle":
        distance = np.hypot(u, v) - 1
    elif shape == "square":
        distance = np.maximum(abs(u), abs(v)) - 1
    elif shape == "triangle":
        distance = np.maximum(v - 1, (2 * abs(u) - v - 1) / np.sqrt(5))
    else:
        distance = np.minimum(np.maximum(abs(u) - 1, abs(v) - _ARM), np.maximum(abs(u) - _ARM, abs(v) - 1))
    coverage: Array = np.clip(0.5 - distance * side / 2, 0, 1).astype(np.float32)[..., None]
    return coverage


@lru_cache(maxsize=1024)
def _shade(fill: str, side: int) -> Array:
    """Brightness [side, side, 1] of a fill; the pattern repeats about four times across the object."""
    u, v = _box_coordinates(side)
    if fill == "stripes":
        wave = np.sin(4 * np.pi * (u + v) / 1.5)
    elif fill == "dots":
        wave = 1 - 3 * np.exp(-(np.sin(2 * np.pi * u) ** 2 + np.sin(2 * np.pi * v) ** 2) * 2)
    elif fill == "checks":
        wave = np.sign(np.sin(2 * np.pi * u) * np.sin(2 * np.pi * v))
    else:
        wave = np.ones(np.broadcast_shapes(u.shape, v.shape))
    shade: Array = (0.8 + 0.2 * np.clip(wave, -1, 1)).astype(np.float32)[..., None]
    return shade


def _box_coordinates(side: int) -> tuple[Any, Any]:
    steps = (np.arange(side) + 0.5) / side * 2 - 1
    return steps[None, :], steps[:, None]


def photographs_in(paths: Sequence[Path]) -> tuple[Path, ...]:
    """Checked once when the dataset is made, so that a broken picture is reported before training starts."""
    for path in paths:
        _load(path)
    return tuple(paths)
