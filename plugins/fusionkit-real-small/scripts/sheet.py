"""The picture in the README: computed boxes, what the backbone's layers show, and what a trained checkpoint answers.

    python scripts/sheet.py runs/real_small docs/sheet.png

Rows: (1) real pictures with the boxes that follow from their pixels; (2) the first three principal components of
DINOv2-small's layer 12, and how alike each patch of the coins is to one coin; (3) answers of the checkpoint on held-out
synthetic scenes. Prints how well likeness to one coin tells coin from ground, against the same with raw pixels.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from fusionkit_real_small.dinov2 import Dinov2Small
from fusionkit_real_small.photographs import NAMES, Photographs
from fusionkit_real_small.specs import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PATCH,
    Dinov2SmallConfig,
    PhotographsConfig,
    describe_dinov2_small,
)
from PIL import Image, ImageDraw
from torch import Tensor

from fusionkit.plugin import BlockSite, Box, Prediction, Turn

TILE, GAP, SIDE = 224, 8, 448


def layer(picture: Image.Image, number: int) -> tuple[Tensor, Tensor]:
    """(layer x_ND, normalised pixel patches p_ND) of a picture squeezed to a square of 448 px."""
    config = Dinov2SmallConfig(image_size=SIDE)
    encoder = Dinov2Small(config, BlockSite(info=describe_dinov2_small(config), layers=(number,))).eval()
    pixels = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    x_HWC = (torch.from_numpy(pixels) - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    x_1CHW = x_HWC.permute(2, 0, 1)[None].contiguous()
    with torch.no_grad():
        (x_1ND,) = encoder.forward_layers(x_1CHW, (number,))
    return x_1ND[0], torch.nn.functional.unfold(x_1CHW, PATCH, stride=PATCH)[0].T


def components(x_ND: Tensor) -> Image.Image:
    """The first three principal components as red, green and blue."""
    centred = x_ND - x_ND.mean(0)
    _, _, axes = torch.pca_lowrank(centred, q=3)
    shown = centred @ axes
    low, high = shown.quantile(0.02, dim=0), shown.quantile(0.98, dim=0)
    return plane(((shown - low) / (high - low)).clamp(0, 1))


def plane(values_NC: Tensor) -> Image.Image:
    side = SIDE // PATCH
    pixels = (values_NC.reshape(side, side, -1).numpy() * 255).astype(np.uint8)
    picture = Image.fromarray(pixels.squeeze(-1)) if pixels.shape[-1] == 1 else Image.fromarray(pixels)
    return picture.convert("RGB").resize((TILE, TILE), Image.Resampling.NEAREST)


def inside(boxes: Sequence[Box], size: tuple[int, int]) -> Tensor:
    """Which patches have their centre in one of the boxes' ellipses."""
    side = SIDE // PATCH
    y_N, x_N = np.divmod(np.arange(side * side), side)
    x_N, y_N = (x_N + 0.5) / side * size[0], (y_N + 0.5) / side * size[1]
    found = np.zeros(side * side, dtype=bool)
    for box in boxes:
        across = (x_N - (box.x0 + box.x1) / 2) / ((box.x1 - box.x0) / 2)
        down = (y_N - (box.y0 + box.y1) / 2) / ((box.y1 - box.y0) / 2)
        found |= across**2 + down**2 < 1
    return torch.from_numpy(found)


def likeness(x_ND: Tensor, one_N: Tensor) -> Tensor:
    """Cosine of every patch with the mean of the patches in one coin."""
    x_ND = x_ND - x_ND.mean(0)
    return torch.nn.functional.cosine_similarity(x_ND, x_ND[one_N].mean(0, keepdim=True), dim=-1)


def area_under_curve(score_N: Tensor, truth_N: Tensor) -> float:
    """How often a patch of a coin scores above one of the ground."""
    ranks = score_N.argsort().argsort().double() + 1
    positive = int(truth_N.sum())
    negative = len(truth_N) - positive
    return float((ranks[truth_N].sum() - positive * (positive + 1) / 2) / (positive * negative))


def boxed(picture: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    canvas = picture.resize((TILE, TILE), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(canvas)
    across, down = TILE / picture.width, TILE / picture.height
    for box in boxes:
        draw.rectangle(
            (box.x0 * across, box.y0 * down, box.x1 * across, box.y1 * down), outline=(64, 220, 120), width=2
        )
    return canvas


def captioned(tile: Image.Image, text: str) -> Image.Image:
    page = Image.new("RGB", (TILE, TILE + 18), "white")
    page.paste(tile.resize((TILE, TILE), Image.Resampling.NEAREST), (0, 0))
    ImageDraw.Draw(page).text((2, TILE + 3), text, fill="black")
    return page


def answers(checkpoint: str) -> list[Image.Image]:
    """Four held-out scenes with predicted (red) and true (green) boxes or points."""
    from fusionkit.blocks.datasets.specs import SyntheticScenesConfig
    from fusionkit.blocks.datasets.synthetic_scenes import SyntheticScenes
    from fusionkit.model.answer import answer
    from fusionkit.model.checkpoint import load_checkpoint

    model, processor = load_checkpoint(checkpoint)
    scenes = SyntheticScenes(SyntheticScenesConfig(seed=2, samples=512, size=112))
    tiles = []
    for index in range(40, 44):  # the first four of a place chosen before looking
        sample, turn, prediction = next(
            row for row in answer(model, processor, [scenes[index]]) if row[1].kind in ("box", "point")
        )
        assert sample.open_image is not None
        tiles.append(captioned(_answered(sample.open_image(), prediction, turn), turn.question[:38]))
    return tiles


def _answered(picture: Image.Image, prediction: Prediction, truth: Turn) -> Image.Image:
    canvas = boxed(picture, truth.boxes)
    draw = ImageDraw.Draw(canvas)
    scale = TILE / picture.width
    for box in prediction.boxes:
        draw.rectangle(
            tuple(value * scale for value in (box.x0, box.y0, box.x1, box.y1)), outline=(255, 48, 48), width=2
        )
    for points, colour in ((truth.points, (64, 220, 120)), (prediction.points, (255, 48, 48))):
        for point in points:
            x, y = point.x * scale, point.y * scale
            draw.ellipse((x - 5, y - 5, x + 5, y + 5), outline=colour, width=2)
    return canvas


def main(checkpoint: str, output: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = Photographs(PhotographsConfig())
    samples = {name: data[index] for index, name in enumerate(NAMES)}
    pictures = {name: sample.open_image() for name, sample in samples.items() if sample.open_image is not None}
    rows: list[list[Image.Image]] = [[], []]
    for name in ("coins", "astronaut", "horse", "chelsea"):
        boxes = [thing.box for thing in samples[name].objects]
        found = f"{len(boxes)} computed box{'es' * (len(boxes) != 1)}" if boxes else "no truth to compute"
        rows[0].append(captioned(boxed(pictures[name], boxes), f"{name}: {found}"))
    coins = [thing.box for thing in samples["coins"].objects]
    x_ND, p_ND = layer(pictures["coins"], 8)
    size = pictures["coins"].size
    one_N, others_N = inside(coins[7:8], size), inside(coins[:7] + coins[8:], size)
    rest_N = ~one_N
    score_N = likeness(x_ND, one_N)
    rows[1].append(captioned(plane((score_N[:, None] + 1) / 2), "likeness to one coin, layer 8"))
    for name in ("astronaut", "chelsea", "coffee"):
        rows[1].append(captioned(components(layer(pictures[name], 12)[0]), f"{name}: 3 components, layer 12"))
    rows.append(answers(checkpoint))
    width, height = 4 * (TILE + GAP) + GAP, 3 * (TILE + 18 + GAP) + GAP
    page = Image.new("RGB", (width, height), "white")
    for row, tiles in enumerate(rows):
        for column, tile in enumerate(tiles):
            page.paste(tile, (GAP + column * (TILE + GAP), GAP + row * (TILE + 18 + GAP)))
    page.quantize(128, dither=Image.Dither.NONE).save(output, optimize=True)
    scores = {
        "coin_or_ground_auc_dinov2_layer_8": round(area_under_curve(score_N[rest_N], others_N[rest_N]), 3),
        "coin_or_ground_auc_pixels": round(area_under_curve(likeness(p_ND, one_N)[rest_N], others_N[rest_N]), 3),
        "patches": int(rest_N.sum()),
    }
    print(json.dumps(scores))  # noqa: T201
    print(f"{output}: {Path(output).stat().st_size:,} bytes")  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
