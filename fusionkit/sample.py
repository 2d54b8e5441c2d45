"""What datasets yield and metrics read: samples, turns, answers and predictions. Torch-free.

All coordinates are pixels of the original picture (see `fusionkit.geometry`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fusionkit.geometry import Box, Mask, Point, Size

if TYPE_CHECKING:
    from PIL.Image import Image

ENDLESS = 2**31 - 1
"""`len()` of a dataset that does not end: read it at any index, do not permute it."""

Segment = str | Box | Point
"""A piece of an answer: plain text, or a box or point that the recipe's box tokenizer will write."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a sample comes from, so that every error can name it: a file or generator, and a row or index if it has one."""

    source: str
    row: int | None = None

    def __str__(self) -> str:
        return f"{self.source}:{self.row}" if self.row is not None else self.source


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and its answer. `kind` is box, point, count, describe or free; `tags` group scores (for example `held_out`)."""

    question: str
    answer: tuple[Segment, ...]
    kind: str = "free"
    tags: tuple[str, ...] = ()

    @property
    def boxes(self) -> tuple[Box, ...]:
        return tuple(segment for segment in self.answer if isinstance(segment, Box))

    @property
    def points(self) -> tuple[Point, ...]:
        return tuple(segment for segment in self.answer if isinstance(segment, Point))

    @property
    def text(self) -> str:
        """The text segments joined, without boxes and points."""
        return "".join(segment for segment in self.answer if isinstance(segment, str)).strip()


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One annotated object: its box, named labels such as {"colour": "red", "shape": "circle"}, and its mask if known."""

    box: Box
    labels: Mapping[str, str] = field(default_factory=dict)
    mask: Mask | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture (or none, or several) with the turns asked about it.

    `open_image` decodes the picture on demand, as RGB with EXIF rotation applied; `size` is its size in pixels and
    `path` its file, if it is one. `more` are further pictures, shown after it; boxes, points and objects are always those
    of the first.
    """

    open_image: Callable[[], Image] | None
    size: Size | None
    turns: tuple[Turn, ...]
    provenance: Provenance
    objects: tuple[SceneObject, ...] = ()
    more: tuple[Callable[[], Image], ...] = ()
    path: str = ""


@dataclass(frozen=True, slots=True)
class Prediction:
    """A model's answer to one turn, parsed: boxes and points in pixels of the original picture.

    `box_log_p` and `point_log_p`, if the answer was asked for with them, hold one entry for each box and point: the
    natural logarithm of the probability of all its tokens, None where it cannot be said.
    """

    text: str
    boxes: tuple[Box, ...] = ()
    points: tuple[Point, ...] = ()
    malformed: tuple[str, ...] = ()
    box_log_p: tuple[float | None, ...] = ()
    point_log_p: tuple[float | None, ...] = ()
