"""Padding from the cropper to `padding_embedding`: what part of each token's cell shows the picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_recipe import picture, recipe, sample
from PIL import Image
from torch import Tensor

import fusionkit
from fusionkit import registry
from fusionkit.blocks.croppers.coverage import cell_coverage, reaches_outside
from fusionkit.blocks.croppers.crops import Crops
from fusionkit.blocks.croppers.overlap_tiles import OverlapTiles
from fusionkit.blocks.croppers.sampling import sample as sample_region
from fusionkit.blocks.croppers.specs import SamplingConfig
from fusionkit.errors import ShapeError
from fusionkit.geometry import Box, Size
from fusionkit.model.answer import answer
from fusionkit.model.modeling import vision_inputs
from fusionkit.model.processing import FusionProcessor
from fusionkit.model.runtime import Runtime
from fusionkit.plugin import EncoderInfo
from fusionkit.testing.checks.croppers import check_regions_tell_padding
from fusionkit.testing.subjects import CheckFailed, Subject
from fusionkit.train.stage_model import StageModel


def info(size: tuple[int, int], stride: tuple[int, int]) -> EncoderInfo:
    zero, one = (0.0,) * 3, (1.0,) * 3
    return EncoderInfo(1, 1, stride, size, 0, zero, one, "", lambda deepest: 0, lambda deepest, grid: 0)


# ----------------------------------------------------------------------------------------------- arithmetic
sides = st.integers(1, 60)
edges = st.floats(-80, 80)


@given(sides, sides, edges, edges, st.floats(1, 150), st.floats(1, 150))
def test_it_is_the_share_of_pixels_that_are_not_padding(
    width: int, height: int, x: float, y: float, across: float, down: float
) -> None:
    """Of a white picture, whatever is black was padded: the sampler's own pixels are the reference."""
    region, size, facts = Box(x, y, x + across, y + down), Size(width, height), info((24, 32), (6, 4))
    white = Image.new("RGB", (width, height), (255, 255, 255))
    pixels = sample_region(white, region, (24, 32), SamplingConfig(type="any"))
    expected = (pixels[..., 0] > 0).reshape(4, 6, 8, 4).mean(axis=(1, 3)).flatten()
    found = cell_coverage(region, size, facts)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    if not reaches_outside(region, size):
        assert set(found) == {1.0}


def test_a_letterboxed_picture() -> None:
    """A picture twice as wide as high in a square of 4x4 cells: the middle half; a little wider, and edges are cut."""
    facts = info((16, 16), (4, 4))
    assert cell_coverage(Box(0, -10, 40, 30), Size(40, 20), facts) == (0.0,) * 4 + (1.0,) * 8 + (0.0,) * 4
    cut = cell_coverage(Box(0, -15, 40, 25), Size(40, 10), facts)
    assert cut == (0.0,) * 4 + (0.5,) * 8 + (0.0,) * 4


# ------------------------------------------------------------------------------------------------- the model
TILES = {"type": "overlap_tiles", "size": 24, "patch": 4, "max_crops": 2, "margin_patches": [0, 0], "fit": "letterbox"}


def padded(**changes: Any) -> dict[str, Any]:
    """The small recipe with a cropper that pads, and padding embeddings on its semantic stream."""
    base = recipe(cropper=TILES, sequence_length=512)
    base["streams"]["semantic"]["steps"]["pad"] = {"type": "padding_embedding", "std": 1.0}
    return base | changes


@pytest.fixture(scope="module")
def parts() -> tuple[Any, FusionProcessor]:
    torch.manual_seed(0)
    model = fusionkit.build(padded()).eval()
    return model, FusionProcessor.from_plan(model.plan)


def marks(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """What the padding embeddings added to each token of the semantic stream: 0 nothing, 1 padding, 2 edge."""
    vectors = model.streams["semantic"].steps["pad"].embedding
    with torch.no_grad():
        marked = model.encode_streams(**vision_inputs(inputs))["semantic"].x_BND
        plain = model.encode_streams(vision_inputs(inputs)["pixels"])["semantic"].x_BND
        choices = torch.stack((torch.zeros_like(vectors[0]), *vectors))
        distance_BN3 = ((marked - plain)[:, :, None] - choices).abs().amax(-1)
    assert distance_BN3.amin(-1).max() < 1e-5
    return distance_BN3.argmin(-1)


def vision(batch: Any) -> dict[str, Tensor]:
    return {name: value for name, value in batch.items() if name.startswith(("pixel_values_", "coverage_"))}


def test_padding_of_a_picture_reaches_the_embeddings(parts: tuple[Any, FusionProcessor]) -> None:
    """40x20 is scaled to 24x12: of the global view's 6x6 cells of 4 px, rows 0 and 5 and half of 1 and 4 are padding."""
    model, processor = parts
    batch = processor(images=[picture(1, (40, 20))], text=["<image>what"])
    assert batch["coverage_semantic"].shape == (len(batch["pixel_values_semantic"]), 36)
    assert batch["coverage_spatial"].shape == (len(batch["pixel_values_spatial"]), 16)
    rows = marks(model, vision(batch))[0].reshape(6, 6)
    assert [set(row.tolist()) for row in rows] == [{1}, {2}, {0}, {0}, {2}, {1}]
    # Every mark is where the pixels say so: padding is black, that is -mean / std, in every pixel of the cell.
    facts = model.plan.streams["semantic"].info
    black = -torch.tensor(facts.mean) / torch.tensor(facts.std)
    is_black = (batch["pixel_values_semantic"] - black[:, None, None]).abs().amax(1) < 1e-6
    cells = is_black.float().reshape(-1, 6, 4, 6, 4).mean((2, 4)).flatten(1)
    assert torch.equal(cells, 1 - batch["coverage_semantic"])


def test_pictures_that_fill_their_crops_carry_nothing(parts: tuple[Any, FusionProcessor]) -> None:
    model, processor = parts
    batch = processor(images=[picture(1, (24, 24))], text=["<image>what"])
    assert not [name for name in batch if name.startswith("coverage_")]
    assert not model.encode_streams(**vision_inputs(batch))["semantic"].coverage_BN
    together = processor(images=[picture(1, (24, 24)), picture(2, (40, 20))], text=["<image>what"] * 2)
    counts = together["crop_counts"].tolist()
    assert (together["coverage_semantic"][: counts[0]] == 1).all()
    assert (together["coverage_semantic"][counts[0] :] < 1).any()


def test_crops_in_chunks_are_marked_alike(parts: tuple[Any, FusionProcessor]) -> None:
    model, processor = parts
    batch = vision(processor(images=[picture(1, (40, 20)), picture(2, (20, 40))], text=["<image><image>what"]))
    whole = model.get_image_features(**batch)
    try:
        model.runtime = Runtime(crop_chunk=1)
        chunked = model.encode_streams(**vision_inputs(batch))
        with torch.no_grad():
            assert torch.equal(chunked["semantic"].coverage_BN, batch["coverage_semantic"])
            torch.testing.assert_close(model.get_image_features(**batch).x_BND, whole.x_BND)
    finally:
        model.runtime = Runtime()


def test_every_way_to_run_a_picture_takes_its_padding(
    parts: tuple[Any, FusionProcessor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training on text, training of streams, answers and logits: all hand the coverage to the stream."""
    model, processor = parts
    seen: list[Tensor | None] = []
    stream = model.streams["semantic"]
    run = stream._run
    monkeypatch.setattr(stream, "_run", lambda x, runtime, shares: (seen.append(shares), run(x, runtime, shares))[1])
    samples = [sample(1, size=(40, 20))]
    batch = processor.batch(samples)
    names = ("input_ids", "attention_mask", "visual_index", "pixel_values_", "coverage_")
    model(**{name: value for name, value in batch.items() if name.startswith(names)})
    list(answer(model, processor, samples, max_new_tokens=1))
    stage = StageModel(model, {})
    stage.streams = ["semantic"]
    stage.run(batch)
    stage.needs_text = True
    stage.run(batch)
    assert len(seen) == 4
    assert all(shares is not None and torch.equal(shares, batch["coverage_semantic"]) for shares in seen)


def test_coverage_of_another_shape_is_refused(parts: tuple[Any, FusionProcessor]) -> None:
    model, processor = parts
    batch = vision(processor(images=[picture(1, (40, 20))], text=["<image>what"]))
    batch["coverage_semantic"] = batch["coverage_semantic"][:, :9]
    with pytest.raises(ShapeError, match=r"streams.semantic: expected coverage of shape \(\d, 36\).*got \(\d, 9\)"):
        model.get_image_features(**batch)


def test_the_kit_finds_a_cropper_whose_regions_are_not_what_it_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures in the middle of what they are cut from, said to be at the top left of it."""
    subject = Subject(registry.spec("croppers", "overlap_tiles"), {**TILES, "size": 48})
    check_regions_tell_padding(subject)
    split = OverlapTiles.split

    def shifted(self: OverlapTiles, image: Image.Image, streams: Any) -> Crops:
        crops = split(self, image, streams)
        regions = (Box(0, 0, box.x1 - box.x0, box.y1 - box.y0) for box in crops.regions)
        return Crops(tuple(regions), crops.pixels)

    monkeypatch.setattr(OverlapTiles, "split", shifted)
    with pytest.raises(CheckFailed, match=r"has a picture where its region .* says padding"):
        check_regions_tell_padding(subject)
