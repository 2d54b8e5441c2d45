"""Every box format on any picture, box and text."""

from __future__ import annotations

import random
import time
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fusionkit import registry
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


@pytest.mark.parametrize("name", NAMES)
def test_narrow_floats_mean_their_exact_value(name: str) -> None:
    tokenizer, size = make(name), Size(641, 222)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for value in torch.linspace(0, 222, 50).to(dtype):
            exact = float(Fraction(value.item()))
            assert tokenizer.encode(Point(value.item(), value.item()), size) == tokenizer.encode(
                Point(exact, exact), size
            )
    assert tokenizer.encode(Point(np.float32(1.1), np.float32(1.1)), size) == tokenizer.encode(
        Point(float(np.float32(1.1)), float(np.float32(1.1))), size
    )


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
