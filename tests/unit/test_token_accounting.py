"""Tokens are counted in one place; a processor that makes others is stopped, by name, before the decoder runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from model_recipe import decoder, picture, recipe, sample
from torch import Tensor
from transformers import AddedToken

import fusionkit
from fusionkit.data.collate import Collate
from fusionkit.errors import DataError, FusionkitError, ShapeError
from fusionkit.geometry import Size
from fusionkit.model.answer import answer
from fusionkit.model.modeling import FusionVLM
from fusionkit.model.pictures import Pictures
from fusionkit.model.processing import FusionProcessor
from fusionkit.plugin import IMAGE_TOKEN

CROPPERS = {
    "resize": {"type": "resize", "size": 24},
    "overlap_tiles": {"type": "overlap_tiles", "size": 24, "patch": 4, "max_crops": 4, "margin_patches": [2, 2]},
}
SIZES = [(40, 30), (90, 20), (24, 24)]


@pytest.fixture(scope="module", params=CROPPERS)
def model(request: pytest.FixtureRequest) -> FusionVLM:
    torch.manual_seed(0)
    asked = recipe(cropper=CROPPERS[request.param], sequence_length=256, language_model=decoder())
    return fusionkit.build(asked).eval()


class ShortText(FusionProcessor):
    """Loses the last image token of every row."""

    def _encode(self, *args: Any) -> list[int]:
        ids = super()._encode(*args)
        last = len(ids) - 1 - ids[::-1].index(self.image_token_id)
        return ids[:last] + ids[last + 1 :]


class LongText(FusionProcessor):
    """Says the first image token of the second row twice."""

    def _pad(self, rows: Any, side: str) -> dict[str, Tensor]:
        first = rows[1].index(self.image_token_id)
        longer = [*rows[1][:first], self.image_token_id, *rows[1][first:]]
        return super()._pad([rows[0], longer, *rows[2:]], side)


class ShortIndex(FusionProcessor):
    """Places one visual token too few."""

    def _visual_inputs(self, pictures: Pictures, order: Iterable[int]) -> dict[str, Tensor]:
        inputs = super()._visual_inputs(pictures, order)
        return inputs | {"visual_index": inputs["visual_index"][:-1]}


class OtherLayout(FusionProcessor):
    """Lays pictures out as if each were its neighbour: right sums, wrong rows."""

    def _pictures(self, *args: Any) -> Pictures:
        pictures = super()._pictures(*args)
        return replace(pictures, layouts=(*pictures.layouts[1:], pictures.layouts[0]))


class OneCropLess:
    """A cropper that forgets the last tile."""

    def __init__(self, cropper: Any) -> None:
        self.cropper = cropper

    def split(self, image: Any, streams: Any) -> Any:
        crops = self.cropper.split(image, streams)
        return replace(crops, pixels={name: pixels[:-1] for name, pixels in crops.pixels.items()})


def samples() -> list[Any]:
    return [sample(number, size=size) for number, size in enumerate(SIZES)]


def forbidden(*_: Any, **__: Any) -> None:
    raise AssertionError("the language model ran")


def expected(model: FusionVLM, number: int) -> int:
    return len(model.plan.layout(Size(*SIZES[number])).patches)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            ShortText,
            lambda model: (
                rf"test:0: expected {expected(model, 0)} image tokens, the processor made {expected(model, 0) - 1}$"
            ),
        ),
        (
            LongText,
            lambda model: (
                rf"test:0: expected {expected(model, 0)} image tokens, the processor made {expected(model, 0) + 1}$"
            ),
        ),
        (ShortIndex, lambda model: r"test:0 and 5 other rows: expected \d+ visual tokens, the processor placed \d+$"),
    ],
    ids=["short text", "long text", "short index"],
)
def test_a_broken_processor_is_named_before_the_decoder_runs(
    model: FusionVLM, kind: type[FusionProcessor], message: Callable[[FusionVLM], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.language_model, "forward", forbidden)
    broken = kind.from_plan(model.plan)
    with pytest.raises(DataError, match=message(model)):
        list(answer(model, broken, samples()))
    with pytest.raises(DataError, match=message(model)):
        Collate(broken, None)(samples())


def test_tokens_in_the_wrong_rows_are_found(model: FusionVLM, monkeypatch: pytest.MonkeyPatch) -> None:
    if expected(model, 0) == expected(model, 1):
        pytest.skip("every picture takes the same tokens")
    monkeypatch.setattr(model.language_model, "forward", forbidden)
    broken = OtherLayout.from_plan(model.plan)
    wrong = rf"test:0: expected {expected(model, 0)} image tokens, the processor made {expected(model, 1)}$"
    with pytest.raises(DataError, match=wrong):
        list(answer(model, broken, samples()))


def test_rows_of_text_are_named_by_their_number(model: FusionVLM) -> None:
    broken = ShortText.from_plan(model.plan)
    text = [broken.prompt("x"), broken.prompt("y")]
    with pytest.raises(DataError, match=r"text 1: expected \d+ image tokens, the processor made \d+$"):
        broken(images=[picture(1), picture(2)], text=text)


def test_a_cropper_that_loses_a_crop_is_named(model: FusionVLM) -> None:
    processor = FusionProcessor.from_plan(model.plan)
    processor._cropper = OneCropLess(processor._cropper)
    with pytest.raises(
        ShapeError, match=r"test:0: cropper: 40x30 picture gives \d+ crops for stream semantic, its layout counts \d+"
    ):
        processor.batch(samples())


def test_a_tokenizer_that_splits_the_mark_is_named(model: FusionVLM) -> None:
    processor = FusionProcessor.from_plan(model.plan)
    processor.tokenizer.add_tokens([AddedToken(IMAGE_TOKEN * 2, special=True)], special_tokens=True)
    with pytest.raises(DataError, match=r"test:0: expected \d+ image tokens, the tokenizer made \d+"):
        processor.batch(samples())


def test_the_model_itself_counts_too(model: FusionVLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.language_model, "forward", forbidden)
    batch = FusionProcessor.from_plan(model.plan).collate(samples())
    batch["visual_index"] = batch["visual_index"][:-1]
    with pytest.raises(FusionkitError, match=r"the text has \d+ image tokens, the pictures give \d+ visual tokens"):
        model(**batch)
    with pytest.raises(FusionkitError, match=r"the text has \d+ image tokens, the pictures give \d+ visual tokens"):
        model.generate(**{name: value for name, value in batch.items() if name != "labels"}, max_new_tokens=2)


def test_plan_processor_and_model_count_alike(model: FusionVLM) -> None:
    """One number from the layout: what the plan says of a size is what stands in the row and what the model places."""
    processor = FusionProcessor.from_plan(model.plan)
    for size in SIZES:
        batch = processor(images=[picture(0, size)], text=[processor.prompt("x")])
        layout = model.plan.layout(Size(*size))
        assert int((batch["input_ids"] == processor.image_token_id).sum()) == len(layout.patches)
        assert len(batch["visual_index"]) == len(layout.patches)
        assert int(batch["crop_counts"].sum()) == layout.crops
        text = processor(text=[processor.prompt("x", pictures=0)])
        assert batch["input_ids"].shape[1] - text["input_ids"].shape[1] == layout.tokens
