"""`coordinate_bins` on any box, picture and number of bins."""

from __future__ import annotations

import math
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from fusionkit.blocks.box_tokenizers.coordinate_bins import CoordinateBins
from fusionkit.blocks.box_tokenizers.specs import CoordinateBinsConfig
from fusionkit.geometry import Box, Point, Size

bins = st.integers(2, 4096).map(lambda number: CoordinateBins(CoordinateBinsConfig(bins=number)))
sides = st.integers(1, 20_000)
sizes = st.builds(Size, sides, sides)
shares = st.floats(0, 1, allow_nan=False)
anywhere = st.floats(-1e9, 1e9, allow_nan=False)
tokens = st.sampled_from(
    ["<BOX>", "<END_BOX>", "<POINT>", "<END_POINT>", "<COORD_0>", "<COORD_1>", "<COORD_99>", "<COORD_7", " ", "x"]
)


@given(bins, sizes, shares, shares, shares, shares)
def test_boxes_come_back_within_the_tolerance(
    bins: CoordinateBins, size: Size, a: float, b: float, c: float, d: float
) -> None:
    x0, x1 = sorted((a * size.width, c * size.width))
    y0, y1 = sorted((b * size.height, d * size.height))
    (box,) = bins.parse(bins.encode(Box(x0, y0, x1, y1), size), size, strict=True).boxes
    across, down = (side + 1e-9 for side in bins.tolerance(size))  # rounding of the float coordinates
    assert abs(box.x0 - x0) <= across
    assert abs(box.x1 - x1) <= across
    assert abs(box.y0 - y0) <= down
    assert abs(box.y1 - y1) <= down


@given(bins, sizes, anywhere, anywhere)
def test_points_follow_equation_12_in_rationals(bins: CoordinateBins, size: Size, x: float, y: float) -> None:
    def exact(value: float, side: int) -> int:
        share = min(max(Fraction(value) / side, Fraction(0)), Fraction(1))
        return math.floor(share * (bins.bins - 1) + Fraction(1, 2))

    expected = f"<POINT><COORD_{exact(x, size.width)}><COORD_{exact(y, size.height)}><END_POINT>"
    assert bins.encode(Point(x, y), size) == expected


@given(bins, sizes, anywhere, anywhere, anywhere, anywhere)
def test_encoding_is_stable_under_its_own_decoding(
    bins: CoordinateBins, size: Size, a: float, b: float, c: float, d: float
) -> None:
    text = bins.encode(Box(a, b, c, d), size)
    (box,) = bins.parse(text, size, strict=True).boxes
    assert bins.encode(box, size) == text
    assert 0 <= box.x0 <= box.x1 <= size.width
    assert 0 <= box.y0 <= box.y1 <= size.height


@given(st.lists(tokens, max_size=30).map("".join), sizes)
def test_parsing_any_mixture_accounts_for_every_marker(text: str, size: Size) -> None:
    bins = CoordinateBins(CoordinateBinsConfig(bins=100))
    parsed = bins.parse(text, size)
    assert len(parsed.boxes) + sum(piece.count("<BOX>") for piece in parsed.malformed) == text.count("<BOX>")
    assert len(parsed.points) + sum(piece.count("<POINT>") for piece in parsed.malformed) == text.count("<POINT>")
