"""Every box format on any picture, box and text."""

from __future__ import annotations

import math
import random
import re
import time
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionkit import registry
from fusionkit.blocks.box_tokenizers.qwen2_5_vl import resized_size
from fusionkit.errors import BoxDecodeError
from fusionkit.geometry import Box, Point, Size
from fusionkit.testing.strategies import boxes, points

NAMES = registry.names("box_tokenizers")
SPECS = [(name, dict(example)) for name in NAMES for example in registry.spec("box_tokenizers", name).examples]
sizes = st.builds(Size, st.integers(1, 8192), st.integers(1, 8192))


def make(name: str, config: dict[str, Any] | None = None) -> Any:
    spec = registry.spec("box_tokenizers", name)
    return registry.factory(spec)(spec.config(**(config or {})), None)


@pytest.mark.parametrize(("name", "config"), SPECS, ids=str)
@given(data=st.data(), size=sizes)
def test_round_trips_stay_within_the_bound_and_are_stable(
    name: str, config: dict[str, Any], data: st.DataObject, size: Size
) -> None:
    tokenizer = make(name, config)
    box, point = data.draw(boxes(size)), data.draw(points(size))
    text = tokenizer.encode([box, point], size)
    parsed = tokenizer.parse(text, size, strict=True)
    (found,), (dot,) = parsed.boxes, parsed.points
    across, down = (allowed * (1 + 1e-9) for allowed in tokenizer.tolerance(size))
    assert max(abs(found.x0 - box.x0), abs(found.x1 - box.x1), abs(dot.x - point.x)) <= across
    assert max(abs(found.y0 - box.y0), abs(found.y1 - box.y1), abs(dot.y - point.y)) <= down
    assert 0 <= found.x0 <= found.x1 <= size.width
    assert 0 <= found.y0 <= found.y1 <= size.height
    assert tokenizer.encode([found, dot], size) == text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", [1, 222, 666, 4097])
def test_every_number_comes_back_as_itself(name: str, side: int) -> None:
    """Pixels and thousandths of a side: decoding and encoding again changes nothing."""
    tokenizer, size = make(name), Size(side, side)
    for step in range(0, 1001, 7):
        text = tokenizer.encode(Point(side * step / 1000, side - side * step / 1000), size)
        (point,) = tokenizer.parse(text, size, strict=True).points
        assert tokenizer.encode(point, size) == text


def numbers_of(tokenizer: Any, text: str) -> list[int]:
    """The numbers that stand in the text of an item without a label, in the format's order."""
    return [int(number) for number in re.findall(r"[0-9]+", text.replace(".", ""))]


def exact_numbers(name: str, x: Fraction, y: Fraction, size: Size) -> list[int]:
    """A point's numbers by the definition of each format, in rationals, written down here a second time."""

    def even(value: Fraction) -> int:
        return round(value)  # of a Fraction: to the nearest, halves to even, exactly

    def up(value: Fraction) -> int:
        return math.floor(value + Fraction(1, 2))

    u, v = x / size.width, y / size.height
    if name == "coordinate_bins":
        return [up(u * 999), up(v * 999)]
    if name == "pixel_text":
        return [even(x), even(y)]
    if name == "molmo_points":
        return [even(u * 1000), even(v * 1000)]
    if name == "qwen2_5_vl":
        seen = resized_size(size, 28, 3136, 1003520)
        return [even(u * seen.width), even(v * seen.height)]
    if name in ("norm1000", "internvl"):
        return [even(u * 1000), even(v * 1000)]
    if name == "paligemma":
        return [even(v * 1023), even(u * 1023)]
    if name == "pix2seq":
        return [even(v * 999), even(u * 999)]
    if name == "qwen_vl":
        return [up(u * 999), up(v * 999)]
    if name == "florence2":
        return [min(math.floor(u * 1000), 999), min(math.floor(v * 1000), 999)]
    if name == "kosmos2":
        column, row = (min(math.floor(share * 32), 31) for share in (u, v))
        return [row * 32 + column]
    assert name == "shikra"
    side = max(size.width, size.height)
    pads = (side - size.width) // 2, (side - size.height) // 2
    return [even((x + pads[0]) * 1000 / side), even((y + pads[1]) * 1000 / side)]


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data(), size=sizes)
def test_every_width_of_float_gives_the_token_of_its_exact_value(name: str, data: st.DataObject, size: Size) -> None:
    """bfloat16, float16, float32 and float64 coordinates mean the rational they are; no arithmetic is done in them."""
    dtype = data.draw(st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64]))
    shares = torch.tensor([data.draw(st.floats(0, 1)), data.draw(st.floats(0, 1))], dtype=torch.float64)
    narrow = (shares * torch.tensor([size.width, size.height])).to(dtype)
    x, y = (min(value.item(), side) for value, side in zip(narrow, (size.width, size.height), strict=True))
    expected = exact_numbers(name, Fraction(x), Fraction(y), size)
    found = numbers_of(make(name), make(name).encode(Point(x, y), size))
    if name == "molmo_points":  # the label's attribute holds no number, `x` and `y` one decimal each
        found = found[:2]
    assert found[-len(expected) :] == expected  # before them may stand the 2 of `point_2d`


@pytest.mark.parametrize("name", NAMES)
def test_numpy_scalars_are_taken_as_they_are(name: str) -> None:
    tokenizer, size = make(name), Size(641, 222)
    for value in (np.float16(1.1), np.float32(1.1), np.float64(1.1), np.int64(7)):
        assert tokenizer.encode(Point(value, value), size) == tokenizer.encode(Point(float(value), float(value)), size)


@pytest.mark.parametrize("name", sorted({*NAMES} - {"coordinate_bins", "kosmos2"}))
@settings(max_examples=10)
@given(size=sizes)
def test_every_number_is_its_own_under_reading_and_writing(name: str, size: Size) -> None:
    """Every bin, on both axes: its coordinate is written as itself. Bins narrower than rounding allows do not exist."""
    tokenizer = make(name)
    for axis, limit in enumerate(tokenizer.steps(size)):
        first, last = 0, limit
        if name == "shikra":  # bins wholly in the padding are moved to the picture's edge
            first = tokenizer.number(0.0, axis, size)
            last = tokenizer.number(float((size.width, size.height)[axis]), axis, size)
        step = max(1, (last - first) // 2000)
        for number in {*range(first, last + 1, step), last}:
            assert tokenizer.number(tokenizer.coordinate(number, axis, size), axis, size) == number


@settings(max_examples=10)
@given(size=sizes)
def test_every_bin_and_every_cell_is_its_own(size: Size) -> None:
    bins, cells = make("coordinate_bins"), make("kosmos2")
    for number in range(1000):
        text = f"<POINT><COORD_{number}><COORD_{999 - number}><END_POINT>"
        (point,) = bins.parse(text, size, strict=True).points
        assert bins.encode(point, size) == text
    for number in range(32 * 32):
        text = f"<object><patch_index_{number:04d}></object>"
        (point,) = cells.parse(text, size, strict=True).points
        assert cells.encode(point, size) == text


def mutated(name: str, draw: random.Random) -> str:
    """The text of some boxes and points, damaged; or pieces of it in any order."""
    tokenizer, size = make(name), Size(640, 480)
    items = [Box(draw.randrange(640), draw.randrange(480), 640, 480, "cat"), Point(draw.randrange(640), 5, "eye")]
    text = tokenizer.encode(items[: draw.randint(1, 2)], size) + draw.choice(["", " and ", "\n", "é٣"])
    text = "".join(
        draw.choice([text, text[: draw.randrange(len(text))], text[::-1]]) for _ in range(draw.randint(1, 3))
    )
    letters = list(text)
    for _ in range(draw.randint(0, 6)):
        at = draw.randrange(len(letters) + 1)
        letters[at : at + draw.randint(0, 2)] = draw.choice(
            ["<", ">", "[", '"', "\\", "9" * 30, "-", "1e9", "", ";", "\ud800"]
        )
    return "".join(letters)


def fuzz(name: str, count: int) -> None:
    draw = random.Random(name)
    tokenizer, size = make(name), Size(640, 480)
    refused = 0
    for _ in range(count):
        text = mutated(name, draw)
        lenient = tokenizer.parse(text, size)
        assert all(piece and piece in text for piece in lenient.malformed)
        try:
            strict = tokenizer.parse(text, size, strict=True)
        except BoxDecodeError:
            refused += 1
        else:
            assert (strict.boxes, strict.points) == (lenient.boxes, lenient.points)
            assert not lenient.malformed
    assert 0 < refused < count


@pytest.mark.parametrize("name", NAMES)
def test_no_text_breaks_a_parser(name: str) -> None:
    fuzz(name, 300)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_no_text_of_a_hundred_thousand_breaks_a_parser(name: str) -> None:
    fuzz(name, 100_000)


OPENINGS = {
    "coordinate_bins": ["<BOX>", "<BOX><COORD_1>", "<COORD_1>"],
    "florence2": ["cat ", "<loc_1>", "a.", "<loc_"],
    "internvl": ["<box>[[", "<ref>a", "<ref>", "<box>[[1,2],"],
    "kosmos2": ["<object>", "<phrase>a", "<object><patch_index_0001>", "<patch_index_0001>"],
    "molmo_points": ["<point ", '<points x1="1.0" y1="1.0" ', '<point x="', 'x="1.0" '],
    "norm1000": [
        '{"bbox_2d": [',
        '[{"bbox_2d": [1, 2, 3, 4], "a": "',
        '{"\\"',
        '{"a": 1, ',
        '[{"bbox_2d": [1,2,3,4]},',
    ],
    "paligemma": ["<loc0001>", "<loc0001> a", "<loc0001> a ;", "<loc"],
    "pix2seq": ["<bin_1>", "<bin_1> a ", "<bin_1> ;"],
    "pixel_text": ["<box>", "[1, 2, ", "<box> [1, 2, 3, 4], ", "[1,2,3,4],"],
    "qwen2_5_vl": ['{"bbox_2d": [', '{"bbox_2d": [1, 2, 3, 4], "a": 1, ', '{"'],
    "qwen_vl": ["<ref>", "<box>(", "<ref>a</ref>", "<box>(1,2),(3,4)</box>"],
    "shikra": ["[0.1,", "[0.1,0.2;", "[ "],
}


@pytest.mark.parametrize(("name", "opening"), [(name, text) for name, found in OPENINGS.items() for text in found])
def test_parsing_time_is_linear_in_the_length(name: str, opening: str) -> None:
    """Eight times the text may take eight times as long, with room for noise; a square law would take 64 times."""
    tokenizer, size = make(name), Size(640, 480)

    def seconds(count: int) -> float:
        text = opening * (count // len(opening))
        times = []
        for _ in range(3):
            start = time.process_time()
            tokenizer.parse(text, size)
            times.append(time.process_time() - start)
        return min(times)

    assert seconds(16_000) <= 24 * max(seconds(2_000), 2e-4)


def test_every_format_has_hard_texts() -> None:
    assert sorted(OPENINGS) == sorted(name for name in NAMES if "." not in name)
