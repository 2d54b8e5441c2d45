"""`Runtime(check_finite=True)`: the address of whatever first gave NaN or infinity, and what is to blame."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from model_recipe import picture, recipe
from torch import Tensor

import fusionkit
from fusionkit.errors import NumericsError
from fusionkit.model.processing import FusionProcessor
from fusionkit.model.runtime import Runtime
from fusionkit.ops.finite import require_finite


@pytest.fixture
def parts() -> tuple[Any, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = fusionkit.build(recipe()).eval()
    model.runtime = Runtime(check_finite=True)
    processor = FusionProcessor.from_plan(model.plan)
    return model, dict(processor(images=[picture(1)], text=["<image>what"]))


def poison(model: Any, name: str) -> None:
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] = float("nan")


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(
    ("parameter", "address"),
    [
        ("streams.semantic.encoder.blocks.1.norm_mlp.weight", "streams.semantic.encoder: layer 2"),
        ("streams.semantic.encoder.positions", "streams.semantic.encoder: layer 1"),
        ("streams.spatial.steps.widen.linear.weight", "streams.spatial.steps.widen"),
        ("fusion.align.attention.query.weight", "fusion.align"),
        ("fusion.project.layers.0.weight", "fusion.project"),
        ("language_model.model.norm.weight", "language_model: logits"),
    ],
)
def test_the_first_bad_block_is_named_with_its_weights(
    parts: tuple[Any, dict[str, Tensor]], parameter: str, address: str, grad: bool
) -> None:
    model, inputs = parts
    with torch.no_grad():
        model.fusion["align"].gate.fill_(0.5)
    poison(model, parameter)
    with torch.set_grad_enabled(grad), pytest.raises(NumericsError) as caught:
        model(**inputs)
    message = str(caught.value)
    assert message.startswith(f"{address}: ")
    assert "numbers are not finite, the first is nan at [" in message
    assert f"its weights are not finite ({parameter}" in message


def test_pixels_are_looked_at_first(parts: tuple[Any, dict[str, Tensor]]) -> None:
    model, inputs = parts
    inputs["pixel_values_spatial"][0, 1, 2, 3] = float("inf")
    with pytest.raises(NumericsError, match=r"^streams.spatial: pixels: 1 of 1728 .* is inf at \[0, 1, 2, 3\] of"):
        model(**inputs)


def test_generation_looks_too(parts: tuple[Any, dict[str, Tensor]]) -> None:
    model, inputs = parts
    assert model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[1] > 0
    poison(model, "language_model.model.norm.weight")
    with pytest.raises(NumericsError, match=r"^language_model: logits"):
        model.generate(**inputs, max_new_tokens=2, do_sample=False)


def test_overflow_is_not_blamed_on_weights() -> None:
    linear = torch.nn.Linear(2, 2).half()
    with pytest.raises(
        NumericsError, match=r"^fusion.x: .* and weights are finite, so float16 overflowed in it: try float32"
    ):
        require_finite(torch.full((1, 2), 6e4, dtype=torch.float16) * 2, "fusion.x", linear)
    with pytest.raises(NumericsError, match=r"float32 overflowed in it: its weights have grown too large"):
        require_finite(torch.tensor([[1.0, torch.inf]]), "fusion.x", linear)


def test_rows_of_padding_and_invalid_tokens_may_hold_anything(parts: tuple[Any, dict[str, Tensor]]) -> None:
    model, _ = parts
    processor = FusionProcessor.from_plan(model.plan)
    batch = dict(processor(images=[picture(1)] * 2, text=["<image>what", "<image>what is this of all the things"]))
    assert (batch["attention_mask"] == 0).any()
    model(**batch)


def test_off_it_looks_at_nothing(parts: tuple[Any, dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = parts
    model.runtime = Runtime()

    def never(*_: Any) -> None:
        raise AssertionError("looked")

    for module in ("fusionkit.model.tower", "fusionkit.model.modeling"):
        monkeypatch.setattr(f"{module}.require_finite", never)
    with torch.no_grad():
        model(**inputs)
    model(**inputs)


def test_bad_weights_of_a_mixer_are_found_without_it(parts: tuple[Any, dict[str, Tensor]]) -> None:
    """They are looked at once, when they are folded."""
    model, inputs = parts
    model.runtime = Runtime()
    poison(model, "streams.semantic.steps.mix.norm.weight")
    expected = r"^streams.semantic.steps.mix: weights are not finite \(norm.weight\): load others"
    with torch.no_grad(), pytest.raises(NumericsError, match=expected):
        model(**inputs)
