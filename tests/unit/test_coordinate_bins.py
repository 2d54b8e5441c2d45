"""Golden vectors, repairs and error texts of `coordinate_bins`."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest

from fusionkit.blocks.box_tokenizers.coordinate_bins import CoordinateBins
from fusionkit.blocks.box_tokenizers.specs import CoordinateBinsConfig
from fusionkit.errors import BoxDecodeError, DataError
from fusionkit.geometry import Box, Point, Size

BINS_1000 = CoordinateBins(CoordinateBinsConfig())
BINS_100 = CoordinateBins(CoordinateBinsConfig(bins=100))
VGA = Size(640, 480)

# Worked by hand from Eq. 11-13 with B = 1000.
GOLDEN = [
    (Box(0, 0, 640, 480), (0, 0, 999, 999)),
    (Box(320, 240, 320, 240), (500, 500, 500, 500)),  # 319.68... + .5 of bin 499.5: the half rounds up
    (Box(1, 1, 2, 2), (2, 2, 3, 4)),
    (Box(63.9, 100.25, 600, 479), (100, 209, 937, 997)),
]


@pytest.mark.parametrize(("box", "bins"), GOLDEN)
def test_golden_boxes(box: Box, bins: tuple[int, ...]) -> None:
    expected = "<BOX>" + "".join(f"<COORD_{k}>" for k in bins) + "<END_BOX>"
    assert BINS_1000.encode(box, VGA) == expected
    (decoded,) = BINS_1000.parse(expected, VGA, strict=True).boxes
    assert decoded == Box(bins[0] * 640 / 999, bins[1] * 480 / 999, bins[2] * 640 / 999, bins[3] * 480 / 999)


def test_points_have_their_own_markers() -> None:
    text = BINS_100.encode(Point(24, 48), Size(48, 48))
    assert text == "<POINT><COORD_50><COORD_99><END_POINT>"
    assert BINS_100.parse(text, Size(48, 48), strict=True).points == (Point(50 * 48 / 99, 48.0),)


@pytest.mark.parametrize("side", [37, 222, 375, 480, 500, 640, 666, 1920, 4097])
def test_bins_are_exact_where_floats_are_not(side: int) -> None:
    for x in range(side + 1):
        exact = math.floor(Fraction(x, side) * 999 + Fraction(1, 2))
        assert BINS_1000.encode(Point(x, 0), Size(side, 1)) == f"<POINT><COORD_{exact}><COORD_0><END_POINT>"


def test_fractional_pixels_are_exact_too() -> None:
    # 0.1 is a little more than 1/10 as a float: its own ratio decides, not a rounded product.
    exact = math.floor(Fraction(0.1) / 3 * 999 + Fraction(1, 2))
    assert BINS_1000.encode(Point(0.1, 0), Size(3, 3)).startswith(f"<POINT><COORD_{exact}>")


def test_vocabulary_is_markers_then_rising_coordinates() -> None:
    assert CoordinateBins(CoordinateBinsConfig(bins=2)).vocabulary() == (
        "<BOX>", "<END_BOX>", "<POINT>", "<END_POINT>", "<COORD_0>", "<COORD_1>",
    )  # fmt: skip
    assert BINS_100.coordinates() == BINS_100.vocabulary()[4:]
    assert len(set(BINS_1000.vocabulary())) == 1004


def test_encode_clamps_to_the_picture_and_orders_corners() -> None:
    assert BINS_100.encode(Box(700, 500, -5, -5), VGA) == BINS_100.encode(Box(0, 0, 640, 480), VGA)


def test_encode_takes_several_in_order() -> None:
    items = [Box(0, 0, 10, 10), Point(5, 5)]
    assert BINS_100.encode(items, VGA) == BINS_100.encode(items[0], VGA) + BINS_100.encode(items[1], VGA)
    assert BINS_100.encode([], VGA) == ""


@pytest.mark.parametrize("x", [math.nan, math.inf, -math.inf])
def test_encode_refuses_what_is_not_finite(x: float) -> None:
    with pytest.raises(DataError, match=r"cannot encode Box\(.*coordinates must be finite numbers"):
        BINS_100.encode(Box(x, 0, 1, 1), VGA)


def test_parse_passes_over_other_text_and_keeps_order() -> None:
    text = "a cat <BOX><COORD_1><COORD_2><COORD_3><COORD_4><END_BOX>, dog at <POINT><COORD_0><COORD_9><END_POINT>."
    parsed = BINS_100.parse(text, Size(99, 99), strict=True)
    assert parsed.boxes == (Box(1, 2, 3, 4),)
    assert parsed.points == (Point(0, 9),)
    assert parsed.malformed == ()


def test_lenient_parsing_orders_corners_and_allows_spaces() -> None:
    text = "<BOX> <COORD_30><COORD_4>\n<COORD_3> <COORD_40><END_BOX>"
    assert BINS_100.parse(text, Size(99, 99)).boxes == (Box(3, 4, 30, 40),)
    with pytest.raises(BoxDecodeError, match="is neither a box"):
        BINS_100.parse(text, Size(99, 99), strict=True)


def test_strict_parsing_refuses_swapped_corners() -> None:
    with pytest.raises(BoxDecodeError, match=r"corners of <BOX>.* are swapped; expected x0 <= x1 and y0 <= y1"):
        BINS_100.parse("<BOX><COORD_30><COORD_4><COORD_3><COORD_40><END_BOX>", VGA, strict=True)


MALFORMED = {
    "three coordinates": "<BOX><COORD_1><COORD_2><COORD_3><END_BOX>",
    "five coordinates": "<BOX><COORD_1><COORD_2><COORD_3><COORD_4><COORD_5><END_BOX>",
    "cut off": "<BOX><COORD_1><COORD_2><COORD_3><COORD_4>",
    "outside the bins": "<BOX><COORD_1><COORD_2><COORD_3><COORD_100><END_BOX>",
    "wrong end": "<BOX><COORD_1><COORD_2><COORD_3><COORD_4><END_POINT>",
    "leading zero": "<POINT><COORD_01><COORD_2><END_POINT>",
    "negative": "<POINT><COORD_-1><COORD_2><END_POINT>",
    "no number": "<POINT><COORD_><COORD_2><END_POINT>",
    "only an end": "<END_BOX>",
    "no markers": "<COORD_1><COORD_2>",
    "words between": "<POINT>",
}


@pytest.mark.parametrize("piece", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_pieces_are_reported_not_guessed(piece: str) -> None:
    good = "<POINT><COORD_7><COORD_8><END_POINT>"
    parsed = BINS_100.parse(f"so {piece} and {good}", Size(99, 99))
    assert parsed.malformed == (piece,)
    assert (parsed.boxes, parsed.points) == ((), (Point(7, 8),))
    with pytest.raises(BoxDecodeError, match=r"is neither a box .* with i from 0 to 99"):
        BINS_100.parse(f"so {piece} and {good}", Size(99, 99), strict=True)


def test_a_box_after_a_broken_one_is_still_found() -> None:
    parsed = BINS_100.parse("<BOX><COORD_9><BOX><COORD_1><COORD_2><COORD_3><COORD_4><END_BOX>", Size(99, 99))
    assert parsed.boxes == (Box(1, 2, 3, 4),)
    assert parsed.malformed == ("<BOX><COORD_9>",)


def test_two_broken_ones_in_a_row_are_two() -> None:
    assert BINS_100.parse("<BOX><COORD_9><POINT><COORD_1>", VGA).malformed == ("<BOX><COORD_9>", "<POINT><COORD_1>")


@pytest.mark.parametrize("number", ["9" * 5000, "99999", "٣"])
def test_no_number_breaks_the_parser(number: str) -> None:
    text = f"<POINT><COORD_{number}><COORD_1><END_POINT>"
    assert BINS_100.parse(text, VGA).malformed == (text,)


def test_plain_text_has_nothing() -> None:
    assert BINS_100.parse("there are 3 <b>circles</b>", VGA, strict=True) == BINS_100.parse("", VGA)
