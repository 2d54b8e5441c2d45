"""`overlap_tiles` against recorded crop plans and pixels of the preprocessing it follows (allenai/molmo)."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fusionkit.blocks.croppers.coverage import cell_coverage
from fusionkit.blocks.croppers.overlap_tiles import OverlapTiles
from fusionkit.blocks.croppers.specs import OverlapTilesConfig
from fusionkit.geometry import Grid, Size
from fusionkit.plugin import IMAGE_TOKEN, EncoderInfo

GOLDENS = Path(__file__).parent / "goldens"
CASES = json.loads((GOLDENS / "crop_plan.json").read_text())["cases"]
RECORDED_NAMES = {IMAGE_TOKEN: "<im_patch>"}

# name in the recording -> (fit, resample, antialias)
RESIZE: dict[str, tuple[Any, Any, bool]] = {
    "siglip": ("stretch", "bilinear", False),
    "default": ("letterbox", "bilinear", True),
    "dino": ("stretch", "bicubic", True),
}
STATISTICS = {
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "openai": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "dino": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def _name(case: dict[str, Any]) -> str:
    height, width = case["image_hw"]
    return f"{width}x{height}-{case['resize']}-{case['base']}-{case['max_crops']}crops"


def _cropper(case: dict[str, Any]) -> OverlapTiles:
    fit, resample, antialias = RESIZE[case["resize"]]
    return OverlapTiles(
        OverlapTilesConfig(
            size=case["base"],
            patch=case["patch"],
            max_crops=case["max_crops"],
            margin_patches=tuple(case["margins"]),
            fit=fit,
            resample=resample,
            antialias=antialias,
        )
    )


def _info(patch: int, side: int, mean: Any = (0.0, 0.0, 0.0), std: Any = (1.0, 1.0, 1.0)) -> EncoderInfo:
    return EncoderInfo(1, 1, (patch, patch), (side, side), 0, mean, std, "", lambda deepest: 0, lambda deepest, grid: 0)


@pytest.mark.parametrize("case", CASES, ids=_name)
def test_tokens_and_their_order(case: dict[str, Any]) -> None:
    height, width = case["image_hw"]
    side = case["base"] // case["patch"] // case["pool"]
    layout = _cropper(case).layout(Size(width, height), Grid(side, side))
    assert layout.tokens == case["n_image_tokens"]
    assert len(layout.patches) == case["n_patch_tokens"]
    assert layout.crops == case["image_input_idx_shape"][0]
    runs = [[RECORDED_NAMES.get(symbol, symbol), len(list(run))] for symbol, run in groupby(layout.symbols)]
    assert runs == case["tokens_rle"]


@pytest.mark.parametrize("case", [case for case in CASES if "image_input_idx" in case], ids=_name)
def test_every_token_stands_where_it_was_recorded(case: dict[str, Any]) -> None:
    """The recording maps (crop, token) to a place in the block, -100 where the token is dropped."""
    height, width = case["image_hw"]
    layout = _cropper(case).layout(Size(width, height), Grid(12, 12))
    places = [place for place, symbol in enumerate(layout.symbols) if symbol == IMAGE_TOKEN]
    recorded = np.full(layout.crops * 144, -100)
    recorded[list(layout.patches)] = places
    np.testing.assert_array_equal(recorded.reshape(-1, 144), case["image_input_idx"])


@pytest.mark.parametrize("case", CASES, ids=_name)
def test_tiling_and_regions(case: dict[str, Any]) -> None:
    height, width = case["image_hw"]
    cropper = _cropper(case)
    assert list(cropper.tiling(Size(width, height))) == case["tiling_rows_cols"]
    if case["resize"] != "siglip" or "local_crop_boxes_y0x0y1x1_in_src" not in case:
        return
    canvas_height, canvas_width = case["resized_src_hw"]
    for region, (y0, x0, y1, x1) in zip(
        cropper.regions(Size(width, height))[1:], case["local_crop_boxes_y0x0y1x1_in_src"], strict=True
    ):
        on_canvas = np.array([region.y0, region.x0, region.y1, region.x1]) * (
            np.array([canvas_height, canvas_width] * 2) / np.array([height, width] * 2)
        )
        np.testing.assert_allclose(on_canvas, [y0, x0, y1, x1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("case", CASES, ids=_name)
def test_share_of_each_tile_that_is_picture(case: dict[str, Any]) -> None:
    """Recorded masks have no row for the global view, and a filler at their end."""
    height, width = case["image_hw"]
    size, side = Size(width, height), case["base"]
    info = _info(case["patch"], side)
    shares = [np.mean(cell_coverage(region, size, info)) for region in _cropper(case).regions(size)]
    np.testing.assert_allclose(shares[1:], case["mask_row_means"][:-1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("number", range(3))
def test_coverage_of_every_patch(number: int) -> None:
    with np.load(GOLDENS / f"crop_pixels_{number}.npz") as recorded:
        settings = json.loads(str(recorded["hparams"]))
        image, mask = recorded["image"], recorded["mask"]
    size = Size(image.shape[1], image.shape[0])
    found = [cell_coverage(region, size, _info(4, 48)) for region in _cropper(settings).regions(size)]
    np.testing.assert_array_equal(found[1:], mask[:-1])


# Largest difference in grey levels, and the largest share of values that differ by more than half a level.
# `default` was recorded without rounding to 8 bits; `siglip` rounds halves in single precision.
@pytest.mark.parametrize(("number", "levels", "share"), [(0, 1.0, 0.002), (1, 0.52, 0.01), (2, 1e-3, 0.0)])
def test_pixels(number: int, levels: float, share: float) -> None:
    with np.load(GOLDENS / f"crop_pixels_{number}.npz") as recorded:
        settings = json.loads(str(recorded["hparams"]))
        image, crops = recorded["image"], recorded["crops"]
    mean, std = STATISTICS[settings["normalize"]]
    info = _info(4, 48, mean, std)
    pixels = _cropper(settings).split(Image.fromarray(image), {"stream": info}).pixels["stream"]
    # recorded as [crop, patch, (row column channel)]
    patches = pixels.reshape(-1, 3, 12, 4, 12, 4).transpose(0, 2, 4, 3, 5, 1).reshape(-1, 144, 48)
    assert patches.dtype == np.float32
    difference = np.abs(patches - crops) * np.tile(std, 16) * 255
    assert difference.max() <= levels + 1e-4
    assert (difference > 0.5 + 1e-4).mean() <= share
