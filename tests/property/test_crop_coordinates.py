"""Coordinates through every cropper: what a crop shows is where its region says, and answers are in the picture's pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from model_recipe import recipe
from PIL import Image

import fusionkit
from fusionkit import registry
from fusionkit.geometry import Box, Point, Size
from fusionkit.model.processing import FusionProcessor
from fusionkit.plugin import EncoderInfo
from fusionkit.sample import Provenance, Sample, Turn

NAMES = [name for name in registry.names("croppers") if "." not in name]
TILES = {"size": 48, "patch": 4, "max_crops": 6, "margin_patches": [2, 2]}
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "resize": [{}, {"size": 48}, {"resample": "bilinear", "antialias": False}],
    "letterbox": [{}, {"size": 48}, {"resample": "bilinear"}],
    "overlap_tiles": [
        TILES,
        TILES | {"fit": "letterbox"},
        TILES | {"global_view": False, "resample": "bilinear"},
        TILES | {"resample_from": "crop"},
    ],
}
CASES = [(name, config) for name in NAMES for config in SETTINGS[name]]
sizes = st.tuples(st.integers(24, 220), st.integers(24, 220))


def make(name: str, config: dict[str, Any]) -> Any:
    spec = registry.spec("croppers", name)
    return registry.factory(spec)(
        spec.config(**{k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}), None
    )


def stream(height: int, width: int) -> EncoderInfo:
    zero, one = (0.0,) * 3, (1.0,) * 3
    return EncoderInfo(1, 1, (1, 1), (height, width), 0, zero, one, "", lambda deepest: 0, lambda deepest, grid: 0)


STREAMS = {"fine": stream(64, 64), "coarse": stream(48, 48)}


def test_every_cropper_is_here() -> None:
    assert sorted(SETTINGS) == sorted(NAMES)


@pytest.mark.parametrize(("name", "config"), CASES, ids=str)
@settings(deadline=None, max_examples=25)
@given(data=st.data(), size=sizes)
def test_a_mark_is_where_the_region_says(
    name: str, config: dict[str, Any], data: st.DataObject, size: tuple[int, int]
) -> None:
    """The centre of a white square, found in the pixels of each crop that shows all of it and mapped back."""
    width, height = size
    side = data.draw(st.integers(min(size) // 8, min(size) // 3))
    x, y = data.draw(st.integers(0, width - side)), data.draw(st.integers(0, height - side))
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[y : y + side, x : x + side] = 255
    crops = make(name, config).split(Image.fromarray(pixels), STREAMS)
    seen = 0
    for each in crops.pixels.values():
        for region, crop in zip(crops.regions, each, strict=True):
            rows, columns = crop.shape[1:]
            across, down = (region.x1 - region.x0) / columns, (region.y1 - region.y0) / rows
            whole = region.x0 <= x and region.y0 <= y and x + side <= region.x1 and y + side <= region.y1
            if not whole or side < 2 * max(across, down):
                continue
            light = crop[0].clip(0)
            found_x = region.x0 + across * (light.sum(0) @ (np.arange(columns) + 0.5)) / light.sum()
            found_y = region.y0 + down * (light.sum(1) @ (np.arange(rows) + 0.5)) / light.sum()
            assert abs(found_x - (x + side / 2)) <= 0.75 * across
            assert abs(found_y - (y + side / 2)) <= 0.75 * down
            seen += 1
    assume(seen)


@pytest.mark.parametrize(("name", "config"), CASES, ids=str)
@settings(deadline=None, max_examples=25)
@given(size=sizes)
def test_crops_show_all_of_the_picture(name: str, config: dict[str, Any], size: tuple[int, int]) -> None:
    """Every pixel lies in some region, so nothing that has coordinates is unseen."""
    regions = make(name, config).split(Image.new("RGB", size), STREAMS).regions
    for x in range(0, size[0], 7):
        for y in range(0, size[1], 7):
            assert any(box.contains(Point(x + 0.5, y + 0.5)) for box in regions), (x, y)


@pytest.mark.parametrize("boxes", ["coordinate_bins", "qwen2_5_vl", "shikra", "kosmos2"])
@pytest.mark.parametrize("name", NAMES)
def test_answers_are_in_pixels_of_the_picture_whatever_the_crops(name: str, boxes: str) -> None:
    """A box through the processor: written for training, read from an answer; the crops change nothing."""
    crops = {"type": name} | ({"size": 24, "patch": 4, "margin_patches": [2, 2], "max_crops": 4} if name == "overlap_tiles" else {})  # fmt: skip
    plan = fusionkit.plan(
        fusionkit.load_recipe(recipe(cropper=crops, box_tokenizer={"type": boxes}, sequence_length=2048))
    )
    processor = FusionProcessor.from_plan(plan)
    size, box = Size(161, 47), Box(12, 5, 121, 33)
    answer = Turn("Where is it?", (box,), "box")
    sample = Sample(lambda: Image.new("RGB", (161, 47)), size, (answer,), Provenance("test", 0))
    (found,) = processor.parse(processor.answer_text(answer.answer, size), size).boxes
    across, down = (bound + 1e-9 for bound in processor.box_tokenizer.tolerance(size))
    assert max(abs(found.x0 - box.x0), abs(found.x1 - box.x1)) <= across
    assert max(abs(found.y0 - box.y0), abs(found.y1 - box.y1)) <= down
    if boxes == "coordinate_bins":  # its tokens are in the tokenizer of this recipe
        labels = processor.batch([sample])["labels"][0]
        text = processor.tokenizer.decode(labels[labels >= 0])
        assert processor.parse(text, size).boxes == (found,)
