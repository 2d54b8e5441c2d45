"""Croppers: layouts, regions, per-stream pixels, and what they refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from fusionkit.blocks.croppers.letterbox import Letterbox
from fusionkit.blocks.croppers.overlap_tiles import OverlapTiles
from fusionkit.blocks.croppers.resize import Resize
from fusionkit.blocks.croppers.specs import LetterboxConfig, OverlapTilesConfig, ResizeConfig
from fusionkit.errors import DataError, ShapeError
from fusionkit.geometry import Box, Grid, Size
from fusionkit.plugin import IMAGE_TOKEN, EncoderInfo

HALF = (0.5, 0.5, 0.5)
SMALL_TILES = OverlapTilesConfig(size=48, patch=4, max_crops=6, margin_patches=(2, 2))


def stream(height: int, width: int, mean: Any = HALF, std: Any = HALF) -> EncoderInfo:
    return EncoderInfo(1, 1, (1, 1), (height, width), 0, mean, std, "", lambda deepest: 0, lambda deepest, grid: 0)


def gradient(width: int, height: int) -> Image.Image:
    """Red rises from left to right, green from top to bottom, in whole grey levels per pixel."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.arange(width)
    pixels[..., 1] = np.arange(height)[:, None]
    return Image.fromarray(pixels)


# ------------------------------------------------------------------------------------------------------ resize
def test_resize_gives_every_stream_its_own_size_and_statistics() -> None:
    image = gradient(48, 48)
    streams = {"a": stream(48, 48), "b": stream(24, 12, (0.0, 0.1, 0.2), (1.0, 0.5, 0.25))}
    crops = Resize(ResizeConfig()).split(image, streams)
    assert crops.regions == (Box(0, 0, 48, 48),)
    assert {name: x.shape for name, x in crops.pixels.items()} == {"a": (1, 3, 48, 48), "b": (1, 3, 24, 12)}
    assert all(x.dtype == np.float32 and x.flags.c_contiguous for x in crops.pixels.values())
    exact = np.asarray(image, np.float64).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(crops.pixels["a"][0], (exact - 0.5) / 0.5, atol=1e-6)
    assert crops.pixels["b"][0, 2] == pytest.approx((0 - 0.2) / 0.25, abs=1e-6)
    # A linear ramp keeps its values at the centres of the larger pixels, borders aside.
    np.testing.assert_allclose(crops.pixels["b"][0, 0, 5, 2:-2] * 255, np.arange(2, 10) * 4 + 1.5, atol=0.51)


def test_resize_streams_of_one_size_differ_only_in_statistics() -> None:
    crops = Resize(ResizeConfig()).split(
        gradient(30, 20), {"a": stream(16, 16), "b": stream(16, 16, (0.0,) * 3, (1.0,) * 3)}
    )
    np.testing.assert_allclose(crops.pixels["a"], crops.pixels["b"] * 2 - 1, atol=1e-6)


def test_resize_through_a_canvas_lets_no_stream_see_more_than_it() -> None:
    fine = Image.fromarray((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)).convert("RGB")  # one-pixel checks
    direct = Resize(ResizeConfig()).split(fine, {"a": stream(64, 64)}).pixels["a"]
    through = Resize(ResizeConfig(size=16)).split(fine, {"a": stream(64, 64)})
    assert direct.std() > 0.9
    assert through.pixels["a"].std() < 0.1
    assert through.regions == (Box(0, 0, 64, 64),)


def test_resize_layout_is_one_token_per_cell() -> None:
    cropper = Resize(ResizeConfig(size=48))
    layout = cropper.layout(Size(999, 5), Grid(6, 6))
    assert (layout.crops, layout.symbols, layout.patches) == (1, (IMAGE_TOKEN,) * 36, tuple(range(36)))
    assert cropper.largest_layout(Grid(6, 6)) == layout
    assert cropper.special_tokens() == (IMAGE_TOKEN,)


@pytest.mark.parametrize("config", [ResizeConfig(), SMALL_TILES])
def test_only_rgb_is_taken(config: Any) -> None:
    cropper = Resize(config) if isinstance(config, ResizeConfig) else OverlapTiles(config)
    with pytest.raises(DataError, match=r"expected an RGB picture, got mode L; open it with fusionkit\.pictures"):
        cropper.split(Image.new("L", (50, 50)), {"a": stream(48, 48)})


# ------------------------------------------------------------------------------------------------- overlap tiles
@pytest.mark.parametrize("size", [Size(1, 1), Size(16, 16), Size(17, 200), Size(90, 70), Size(5000, 3), Size(64, 1000)])
@pytest.mark.parametrize("global_view", [True, False])
def test_split_and_layout_agree(size: Size, global_view: bool) -> None:
    cropper = OverlapTiles(SMALL_TILES.model_copy(update={"global_view": global_view}))
    layout = cropper.layout(size, Grid(6, 6))
    crops = cropper.split(
        Image.new("RGB", (size.width, size.height), (255, 0, 0)), {"a": stream(48, 48), "b": stream(12, 12)}
    )
    rows, columns = cropper.tiling(size)
    assert layout.crops == len(crops.regions) == len(crops.pixels["a"]) == rows * columns + global_view
    assert crops.pixels["b"].shape == (layout.crops, 3, 12, 12)
    assert (crops.pixels["a"][:, 0] == 1).all()
    assert (crops.pixels["a"][:, 1:] == -1).all()
    assert len(set(layout.patches)) == len(layout.patches)
    assert max(layout.patches) < layout.crops * 36


def test_tokens_of_the_tiles_are_the_picture_in_raster_order() -> None:
    """Each tile token is a cell of the canvas; together they are every cell once, row by row."""
    config = SMALL_TILES.model_copy(update={"global_view": False})
    cropper, grid, size = OverlapTiles(config), Grid(6, 6), Size(112, 80)  # the canvas of 3 x 2 tiles, unscaled
    assert cropper.tiling(size) == (2, 3)
    regions = cropper.regions(size)
    centres = []
    for index in cropper.layout(size, grid).patches:
        region, cell = regions[index // grid.tokens], index % grid.tokens
        centres.append((region.y0 + (cell // 6 + 0.5) * 8, region.x0 + (cell % 6 + 0.5) * 8))
    assert centres == [(row * 8 + 4.0, column * 8 + 4.0) for row in range(10) for column in range(14)]


def test_a_tile_shows_its_region() -> None:
    image = gradient(112, 80)
    crops = OverlapTiles(SMALL_TILES).split(image, {"a": stream(48, 48, (0.0,) * 3, (1.0,) * 3)})
    for region, pixels in zip(crops.regions[1:], crops.pixels["a"][1:], strict=True):
        cut = np.asarray(image.crop((int(region.x0), int(region.y0), int(region.x1), int(region.y1))))
        np.testing.assert_allclose(pixels.transpose(1, 2, 0) * 255, cut, atol=0.51)


def test_letterbox_keeps_the_aspect_ratio_and_pads_with_black() -> None:
    config = SMALL_TILES.model_copy(update={"fit": "letterbox", "max_crops": 1})
    crops = OverlapTiles(config).split(Image.new("RGB", (96, 48), (255, 255, 255)), {"a": stream(48, 48)})
    whole = crops.pixels["a"][0]
    assert crops.regions[0] == Box(0, -24, 96, 72)
    assert (whole[:, 12:36] == 1).all()
    assert (whole[:, :12] == -1).all()
    assert (whole[:, 36:] == -1).all()


@pytest.mark.parametrize("global_view", [True, False])
def test_largest_layout_is_the_largest_of_all_sizes(global_view: bool) -> None:
    cropper = OverlapTiles(SMALL_TILES.model_copy(update={"global_view": global_view}))
    grid = Grid(6, 6)
    sizes = [Size(width, height) for width in range(10, 300, 17) for height in range(10, 300, 17)]
    tokens = {cropper.layout(size, grid).tokens for size in sizes}
    assert max(tokens) == cropper.largest_layout(grid).tokens


def test_largest_layout_of_the_flagship() -> None:
    # 12 tiles above each other: (12 * 8 + 4) rows of 12 + 1, the global 12 rows of 12 + 1, and two ends each.
    assert OverlapTiles(OverlapTilesConfig()).largest_layout(Grid(12, 12)).tokens == 100 * 13 + 2 + 12 * 13 + 2


def test_margins_must_be_whole_tokens() -> None:
    cropper = OverlapTiles(OverlapTilesConfig(margin_patches=(4, 3)))
    with pytest.raises(
        ShapeError,
        match=r"margins of \[4, 3\] patches in a tile of 24 are not whole tokens of its 12x12 grid \(use multiples of 2\)",
    ) as told:
        cropper.layout(Size(640, 480), Grid(12, 12))
    assert told.value.field == "margin_patches"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 100}, "size 100 is not a multiple of patch 16"),
        ({"margin_patches": [12, 12]}, "margins of 24 patches leave nothing of a tile of 24 patches"),
        ({"max_crops": 0}, "greater than or equal to 1"),
        ({"resample": "bicubic", "antialias": False}, "bicubic without antialias is not offered"),
        ({"pool": 2}, "Extra inputs are not permitted"),
    ],
)
def test_configs_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        OverlapTilesConfig.model_validate_json(json.dumps(settings))


def test_counting_tokens_needs_no_array_library() -> None:
    code = """
import sys
from fusionkit.blocks.croppers.overlap_tiles import OverlapTiles
from fusionkit.blocks.croppers.resize import Resize
from fusionkit.blocks.croppers.specs import OverlapTilesConfig
from fusionkit.geometry import Grid, Size
assert OverlapTiles(OverlapTilesConfig()).layout(Size(640, 480), Grid(12, 12)).tokens
heavy = {"torch", "numpy", "PIL"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# --------------------------------------------------------------------------------------------------- letterbox
@pytest.mark.parametrize("size", [Size(96, 48), Size(48, 96), Size(37, 61), Size(1, 1), Size(640, 480)])
def test_a_place_in_the_letterboxed_crop_is_one_in_the_picture(size: Size) -> None:
    """A white box drawn into the picture is found in the crop, and its place there is that of the box again."""
    box = Box(
        size.width // 3,
        size.height // 4,
        size.width // 3 + max(1, size.width // 4),
        size.height // 4 + max(1, size.height // 2),
    )
    image = Image.new("RGB", (size.width, size.height))
    image.paste((255, 255, 255), (int(box.x0), int(box.y0), int(box.x1), int(box.y1)))
    crops = Letterbox(LetterboxConfig()).split(
        image, {"a": stream(96, 96, (0.0,) * 3, (1.0,) * 3), "b": stream(64, 64)}
    )
    (region,) = crops.regions
    assert region.x1 - region.x0 == pytest.approx(region.y1 - region.y0, rel=1 / min(size.width, size.height))
    rows, columns = (np.flatnonzero((crops.pixels["a"][0, 0] > 0.5).any(axis)) for axis in (1, 0))
    across, down = (region.x1 - region.x0) / 96, (region.y1 - region.y0) / 96
    found = Box(
        region.x0 + columns[0] * across,
        region.y0 + rows[0] * down,
        region.x0 + (columns[-1] + 1) * across,
        region.y0 + (rows[-1] + 1) * down,
    )
    for side, exact, step in (
        (found.x0, box.x0, across),
        (found.x1, box.x1, across),
        (found.y0, box.y0, down),
        (found.y1, box.y1, down),
    ):
        assert abs(side - exact) <= max(step, 1.0)


def test_letterbox_pads_with_black_around_the_middle() -> None:
    crops = Letterbox(LetterboxConfig(size=48)).split(
        Image.new("RGB", (96, 48), (255, 255, 255)), {"a": stream(48, 48), "b": stream(24, 24)}
    )
    assert crops.regions == (Box(0, -24, 96, 72),)
    for name, side in (("a", 48), ("b", 24)):
        white = crops.pixels[name][0] == 1
        assert white[:, side // 4 : -side // 4].all()
        assert not white[:, : side // 4].any()
        assert not white[:, -side // 4 :].any()


@pytest.mark.parametrize("size", [Size(3, 5000), Size(5000, 1)])
def test_a_strip_of_a_picture_is_seen_by_every_stream(size: Size) -> None:
    white = Image.new("RGB", (size.width, size.height), (255, 255, 255))
    crops = Letterbox(LetterboxConfig()).split(white, {"a": stream(96, 96), "b": stream(64, 64), "c": stream(70, 70)})
    for pixels in crops.pixels.values():
        assert (pixels == 1).any()


def test_letterbox_and_resize_agree_on_squares() -> None:
    image, streams = gradient(50, 50), {"a": stream(48, 48), "b": stream(24, 24)}
    one, other = Letterbox(LetterboxConfig()).split(image, streams), Resize(ResizeConfig()).split(image, streams)
    assert one.regions == other.regions
    for name in streams:
        np.testing.assert_array_equal(one.pixels[name], other.pixels[name])


def test_letterbox_layout_is_one_token_per_cell() -> None:
    cropper = Letterbox(LetterboxConfig())
    layout = cropper.layout(Size(999, 5), Grid(6, 6))
    assert (layout.crops, layout.symbols, layout.patches) == (1, (IMAGE_TOKEN,) * 36, tuple(range(36)))
    assert cropper.largest_layout(Grid(6, 6)) == layout
    assert cropper.special_tokens() == (IMAGE_TOKEN,)


# ------------------------------------------------------------------------------------------------ resample_from
def test_from_the_crop_other_streams_see_what_the_crop_has_kept() -> None:
    """As the released model feeds its second encoder: the first one's pixels, resized by torch with antialias."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8))
    config = SMALL_TILES.model_copy(update={"resample_from": "crop", "resample": "bilinear", "antialias": False})
    streams = {"a": stream(48, 48), "b": stream(28, 28)}
    crops = OverlapTiles(config).split(image, streams)
    own = OverlapTiles(config.model_copy(update={"resample_from": "image"})).split(image, streams)
    np.testing.assert_array_equal(crops.pixels["a"], own.pixels["a"])
    assert np.abs(crops.pixels["b"] - own.pixels["b"]).max() > 0.1
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(crops.pixels["a"]), (28, 28), mode="bilinear", antialias=True, align_corners=False
    )
    np.testing.assert_allclose(crops.pixels["b"], expected.numpy(), atol=2e-5)
    assert crops.regions == own.regions


def test_padding_is_not_smeared_into_the_picture() -> None:
    with pytest.raises(ValidationError, match="resample_from crop would smear padding into the picture"):
        OverlapTilesConfig(fit="letterbox", resample_from="crop")
