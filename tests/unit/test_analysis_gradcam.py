"""Where an answer comes from: gradients against finite differences, and a planted object is found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from fusionkit.analysis.gradcam import map_of_picture
from fusionkit.analysis.gradients import CONTRIBUTION, FUSED, SENSITIVITY, explain, tokens_to_maps
from fusionkit.geometry import Size
from fusionkit.model.checkpoint import load_checkpoint
from fusionkit.sample import Provenance, Sample, Turn


def square(x: int, y: int) -> Image.Image:
    image = Image.new("RGB", (48, 48), (205, 205, 205))
    ImageDraw.Draw(image).rectangle((x, y, x + 13, y + 13), fill=(230, 30, 30))
    return image


def ask(image: Image.Image, question: str) -> Sample:
    return Sample(lambda: image, Size(*image.size), (Turn(question, ()),), Provenance("test"))


@pytest.fixture(scope="module")
def tiny() -> Any:
    return load_checkpoint("checkpoint:tiny")


def test_maps_point_at_what_the_answer_is_about(tiny: Any) -> None:
    model, processor = tiny
    for x, y in ((4, 4), (30, 28)):
        found = explain(model, processor, ask(square(x, y), "box the red square"))
        assert found.prediction.boxes, found.prediction
        for place in ("semantic 1", "semantic 2", "spatial 2", FUSED):
            grid = found.grids[place]
            best = int(found.maps[place][SENSITIVITY][0].argmax())
            row, column = divmod(best, grid.width)
            cell = 48 / grid.width
            assert x - cell <= (column + 0.5) * cell <= x + 14 + cell, place
            assert y - cell <= (row + 0.5) * cell <= y + 14 + cell, place


def test_the_model_is_left_as_it_was(tiny: Any) -> None:
    model, processor = tiny
    required = [parameter.requires_grad for parameter in model.parameters()]
    explain(model, processor, ask(square(4, 4), "box the red square"))
    assert [parameter.requires_grad for parameter in model.parameters()] == required
    assert all("forward_layers" not in vars(stream.encoder) for stream in model.streams.values())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_sensitivity_is_the_gradient_of_the_answers_likelihood(tiny: Any) -> None:
    model, processor = tiny
    sample = ask(square(30, 4), "box the red square")
    found = explain(model, processor, sample)
    best = int(found.maps["semantic 2"][SENSITIVITY][0].argmax())
    answered = Sample(
        sample.open_image, sample.size, (Turn("box the red square", found.prediction.boxes),), sample.provenance
    )
    batch = processor.batch([answered], 1)
    inputs = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor) and name != "crop_counts"}
    spoken = batch["labels"] != processor.tokenizer.eos_token_id
    inputs["labels"] = torch.where(spoken, batch["labels"], -100)
    encoder = model.streams["semantic"].encoder
    original, width = encoder.forward_layers, model.plan.streams["semantic"].info.width

    def score(channel: int, step: float) -> float:
        def moved(x_BCHW: torch.Tensor, layers: Any, **options: Any) -> list[torch.Tensor]:
            tokens = [x_BND.clone() for x_BND in original(x_BCHW, layers, **options)]
            tokens[1][0, best, channel] += step
            return tokens

        encoder.forward_layers = moved
        # With gradients on, as explain() runs it: no layer is streamed past the list that is moved here.
        loss = model(**inputs).loss.detach()
        del encoder.forward_layers
        return -float(loss) * int((inputs["labels"] != -100).sum())

    slopes = [(score(channel, 0.03) - score(channel, -0.03)) / 0.06 for channel in range(width)]
    measured = sum(slope**2 for slope in slopes) ** 0.5
    assert measured > 1e-3  # small, since the model is sure of its answer; not nothing
    assert float(found.maps["semantic 2"][SENSITIVITY][0, best]) == pytest.approx(measured, rel=0.03)


def test_contribution_is_linear_attribution_for_a_linear_score() -> None:
    x_CND, w_D = torch.tensor([[[1.0, 2.0], [3.0, -4.0]]]), torch.tensor([2.0, 1.0])
    maps = tokens_to_maps(x_CND, w_D.expand(1, 2, 2))
    assert maps[CONTRIBUTION].tolist() == [[4.0, 2.0]]
    assert torch.allclose(maps[SENSITIVITY], torch.full((1, 2), 5.0**0.5))


def test_crops_are_laid_where_they_came_from_and_averaged_where_they_overlap() -> None:
    values = {
        "regions": [[0, 0, 20, 20], [10, 0, 30, 20], [-10, 0, 10, 20]],
        "maps": {"s 1": {"grid": [1, 1], CONTRIBUTION: [[1.0], [3.0], [1.0]]}},
    }
    laid = map_of_picture(values, "s 1", CONTRIBUTION, (6, 4), Size(30, 20))
    assert np.allclose(laid, np.tile([1, 1, 2, 2, 3, 3], (4, 1)))
