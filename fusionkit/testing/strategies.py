"""Hypothesis strategies for what fusionkit works on: grids, frames, token shapes, pictures' sizes, boxes."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from fusionkit.geometry import FULL, Box, Frame, Grid, LayerStackSpec, Point, Size, TokenSpec


def grids(max_side: int = 6) -> SearchStrategy[Grid]:
    """Grids from 1x1 on."""
    return st.builds(Grid, st.integers(1, max_side), st.integers(1, max_side))


def frames() -> SearchStrategy[Frame]:
    """The whole crop, or a part of it at least a tenth of a side wide."""
    starts = st.floats(0, 0.5)
    sides = st.floats(0.1, 0.5)
    parts = st.builds(lambda x, y, w, h: Frame(x, y, x + w, y + h), starts, starts, sides, sides)
    return st.just(FULL) | parts


def token_specs(max_side: int = 6, widths: tuple[int, ...] = (4, 8, 12)) -> SearchStrategy[TokenSpec]:
    """Tokens of one grid over the whole crop."""
    return st.builds(TokenSpec, grids(max_side), st.sampled_from(widths))


def layer_stacks(
    max_depth: int = 4, max_side: int = 4, widths: tuple[int, ...] = (4, 8, 12)
) -> SearchStrategy[LayerStackSpec]:
    """Up to `max_depth` layers of one grid."""
    layers = st.sets(st.integers(0, 12), min_size=1, max_size=max_depth).map(lambda found: tuple(sorted(found)))
    return st.builds(LayerStackSpec, layers, grids(max_side), st.sampled_from(widths))


def windows(max_side: int = 3) -> SearchStrategy[tuple[int, int]]:
    """Rows and columns of a pooling window."""
    return st.tuples(st.integers(1, max_side), st.integers(1, max_side))


def sizes(max_side: int = 5000) -> SearchStrategy[Size]:
    """Sizes of pictures, pixels."""
    return st.builds(Size, st.integers(1, max_side), st.integers(1, max_side))


def points(size: Size) -> SearchStrategy[Point]:
    """Points inside a picture, the edges included."""
    return st.builds(Point, st.floats(0, size.width), st.floats(0, size.height))


@st.composite
def boxes(draw: st.DrawFn, size: Size) -> Box:
    """Boxes inside a picture, empty ones included."""
    x0, x1 = sorted((draw(st.floats(0, size.width)), draw(st.floats(0, size.width))))
    y0, y1 = sorted((draw(st.floats(0, size.height)), draw(st.floats(0, size.height))))
    return Box(x0, y0, x1, y1)


seeds = st.integers(0, 2**31 - 1)
