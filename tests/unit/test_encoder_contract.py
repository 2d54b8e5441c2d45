"""Encoders that are no square ViT fit the contract: several strides, patches and grids of any shape, pictures of any shape."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from model_recipe import recipe
from PIL import Image

import fusionkit
from fusionkit import registry
from fusionkit.model.runtime import Runtime
from fusionkit.recipe.plan_table import read_by, to_dict
from fusionkit.testing import CheckFailed, checks_for

HERE = Path(__file__).parent
NAMES = ("test.strides", "test.oblong", "test.naflex")


@pytest.fixture(scope="module", autouse=True)
def _encoders() -> Iterator[None]:
    """The encoders of `odd_encoders.py`, by the road of `--plugin`."""
    before = dict(registry._files)
    registry.load_plugin_file(HERE / "odd_encoders.py")
    yield
    registry._files.clear()
    registry._files.update(before)
    del sys.modules["odd_encoders"]


def odd(name: str, **changes: Any) -> dict[str, Any]:
    """A small model with one stream, read through one of the encoders."""
    steps = {"mix": {"type": "linear_sum"}}
    stream = {"encoder": {"type": name}, "select": {"type": "all"}, "steps": steps}
    return recipe(**{"streams": {"only": stream}, "fusion": {"project": {"type": "linear"}}, **changes})


# ------------------------------------------------------------------------------------------------ the kit
def _checks() -> list[tuple[str, str]]:
    from fusionkit.testing.checks.encoders import ENCODER_CHECKS

    return [(name, check.__name__.removeprefix("check_")) for name in NAMES for check in ENCODER_CHECKS]


def run_check(name: str, check: str) -> None:
    found = [each for each in checks_for(registry.spec("encoders", name)) if each.id.endswith(f"-{check}")]
    assert found, f"{name} has no check {check}"
    for each in found:
        each()


@pytest.mark.parametrize(("name", "check"), _checks())
def test_they_pass_the_kit(name: str, check: str) -> None:
    run_check(name, check)


def test_padding_is_ignored_by_the_one_that_reads_coverage() -> None:
    run_check("test.naflex", "padding_is_ignored")


@pytest.mark.parametrize(
    ("name", "change", "check", "message"),
    [
        ("test.strides", {"layer_strides": ((4, 4),)}, "description", "1 layer_strides for layers 0..3"),
        ("test.oblong", {"reads_coverage": True}, "description", "claim `padding_ignored`"),
        ("test.naflex", {"reads_coverage": False}, "padding_is_ignored", "does not say reads_coverage"),
    ],
)
def test_the_kit_finds_what_is_declared_wrongly(name: str, change: dict, check: str, message: str) -> None:
    from dataclasses import replace

    spec = registry.spec("encoders", name)
    describe: Callable[[Any], Any] = spec.describe  # type: ignore[assignment]
    wrong = replace(spec, describe=lambda config: replace(describe(config), **change))
    (found,) = [each for each in checks_for(wrong) if each.id.endswith(f"[0]-{check}")]
    with pytest.raises(CheckFailed, match=message):
        found()


def test_the_kit_finds_an_encoder_that_lets_padding_in(monkeypatch: pytest.MonkeyPatch) -> None:
    import odd_encoders  # type: ignore[import-not-found]

    monkeypatch.setattr(odd_encoders.Naflex, "attendable", lambda self, coverage_BN: None)
    with pytest.raises(CheckFailed, match=r"tokens of the picture change by .* with what is beside it"):
        run_check("test.naflex", "padding_is_ignored")


# ------------------------------------------------------------------------------------------ plan and model
def test_the_plan_says_what_is_resampled() -> None:
    planned = fusionkit.plan(fusionkit.load_recipe(odd("test.strides")))
    node = planned.streams["only"].encoder
    assert read_by(node) == "layers 1-3 (strides 4, 8, 16 -> 8)"
    (made,) = [each for each in to_dict(planned)["nodes"] if each["family"] == "encoders"]
    assert made["layer_strides"] == [[4, 4], [8, 8], [16, 16]]


def test_the_plan_is_silent_where_nothing_is() -> None:
    planned = fusionkit.plan(fusionkit.load_recipe(odd("test.oblong")))
    assert read_by(planned.streams["only"].encoder) == "layers 1-2"


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_built_and_answers_as_planned(name: str) -> None:
    torch.manual_seed(0)
    planned = fusionkit.plan(fusionkit.load_recipe(odd(name)))
    model = fusionkit.build(planned).eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == planned.parameters
    info = planned.streams["only"].info
    with torch.no_grad():
        streams = model.encode_streams({"only": torch.randn(2, 3, *info.input_size)})
    assert streams["only"].spec == planned.streams["only"].output


LETTERBOX = {"type": "overlap_tiles", "size": 32, "patch": 8, "max_crops": 1, "margin_patches": [0, 0], "fit": "letterbox",
             "global_view": False}  # fmt: skip


@pytest.mark.parametrize("layers_streamed", [True, False])
def test_a_wide_picture_keeps_its_shape_and_only_its_tokens_count(layers_streamed: bool) -> None:
    """From the cropper to the stream: the upper and lower quarter of a letterboxed 2:1 picture hold nothing."""
    from fusionkit.model.processing import FusionProcessor

    torch.manual_seed(0)
    model = fusionkit.build(fusionkit.load_recipe(odd("test.naflex", cropper=LETTERBOX))).eval()
    model.runtime = Runtime(stream_layers=layers_streamed)
    processor = FusionProcessor.from_plan(model.plan)
    batch = processor(images=[Image.new("RGB", (64, 32), "red")], text=["<image>"])
    coverage = batch["coverage_only"]
    assert coverage.reshape(4, 4).tolist() == [[0.0] * 4, [1.0] * 4, [1.0] * 4, [0.0] * 4]
    with torch.no_grad():
        tokens = model.encode_streams({"only": batch["pixel_values_only"]}, coverage={"only": coverage})["only"]
        other = batch["pixel_values_only"].clone()
        other[:, :, :8], other[:, :, 24:] = 5.0, -5.0
        again = model.encode_streams({"only": other}, coverage={"only": coverage})["only"]
    assert tokens.valid_BN is not None
    assert torch.equal(tokens.valid_BN, coverage > 0)
    inside = tokens.valid_BN
    assert torch.allclose(tokens.x_BND[inside], again.x_BND[inside], atol=1e-6)
    assert not torch.allclose(tokens.x_BND[~inside], again.x_BND[~inside], atol=1e-2)


def test_kept_features_are_told_apart_by_coverage(tmp_path: Path) -> None:
    from fusionkit.train.features import KeptLayers

    torch.manual_seed(0)
    model = fusionkit.build(fusionkit.load_recipe(odd("test.naflex"))).eval()
    encoder, plan = model.streams["only"].encoder, model.plan.streams["only"]
    kept = KeptLayers(encoder, plan, tmp_path)
    pixels = torch.randn(2, 3, 32, 32)
    left = torch.ones(2, 4, 4)
    left[:, :, 2:] = 0
    with torch.no_grad():
        for coverage in (None, torch.ones(2, 16), left.flatten(1)):
            expected = encoder.forward_layers(pixels, plan.layers, coverage_BN=coverage)
            for _ in ("computed", "read"):
                found = kept(pixels, plan.layers, coverage_BN=coverage)
                assert all(map(torch.equal, found, expected))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 6
