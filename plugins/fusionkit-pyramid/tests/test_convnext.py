"""The layers are timm's own, brought to one grid as declared; what does not fit is said in words."""

from __future__ import annotations

import subprocess
import sys

import pytest
import timm
import torch
from fusionkit_pyramid import convnext
from fusionkit_pyramid.convnext import Convnext
from fusionkit_pyramid.shape import SHAPES
from fusionkit_pyramid.spec import ConvnextConfig, describe
from safetensors.torch import save_file
from torch.nn import functional as F

import fusionkit
from fusionkit.plugin import BlockSite, BuildError, ShapeError

TINY = {"model": "test_convnext", "weights": "random", "image_size": (64, 96)}
ENDS = (1, 3, 7, 9)
"""The last layer of each stage."""


def build(layers: tuple[int, ...] = ENDS, **settings: object) -> Convnext:
    config = ConvnextConfig(**{**TINY, **settings})
    return Convnext(config, BlockSite(info=describe(config), layers=layers)).eval()


@pytest.fixture(scope="module")
def theirs() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_convnext", pretrained=False).eval()


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def test_every_stage_is_that_of_timm(theirs, pixels, tmp_path) -> None:
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    statistics = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    with torch.no_grad():
        encoder = build(weights=str(tmp_path / "model.safetensors"), **statistics)
        ours = encoder.forward_layers(pixels, ENDS)
        stages = theirs.forward_intermediates(pixels, intermediates_only=True)
    for x_BND, stage_BDhw in zip(ours, stages, strict=True):
        width = stage_BDhw.shape[1]
        assert not x_BND[..., width:].any()
        grid_BDhw = x_BND[..., :width].transpose(1, 2).unflatten(2, (4, 6))
        if stage_BDhw.shape[2] >= 4:
            assert torch.equal(grid_BDhw, F.adaptive_avg_pool2d(stage_BDhw, (4, 6)))
        else:
            assert torch.equal(grid_BDhw[:, :, ::2, ::2], stage_BDhw)
            assert torch.equal(grid_BDhw[:, :, 1::2, 1::2], stage_BDhw)


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_the_tables_are_those_of_timm(name: str) -> None:
    shape = SHAPES[name]
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False, num_classes=0)
    model.head = torch.nn.Identity()
    assert sum(parameter.numel() for parameter in model.parameters()) == shape.params(shape.depth)
    assert tuple(stage["num_chs"] for stage in model.feature_info) == shape.widths
    reductions = [stage["reduction"] for stage in model.feature_info]
    assert reductions == sorted({stride for stride, _ in shape.layer_strides})


def test_the_plan_shows_the_strides() -> None:
    recipe = fusionkit.load_recipe("builtin:tiny").canonical()
    recipe["streams"]["spatial"]["encoder"] = {"type": "pyramid.convnext", **TINY}
    recipe["streams"]["spatial"]["select"] = {"type": "list", "layers": list(ENDS)}
    node = fusionkit.plan(fusionkit.load_recipe(recipe)).streams["spatial"].encoder
    assert node.site.info.layer_strides[1] == (4, 4)
    assert (str(node.output.grid), node.output.width) == ("4x6", 64)


@pytest.mark.parametrize(
    ("settings", "field", "words"),
    [
        ({"model": "convnextv2_tiny"}, "model", "no ConvNeXt this plugin knows"),
        ({"image_size": 48}, "image_size", "not a multiple of 32"),
        ({"image_size": (64, 40)}, "image_size", "image 64x40 is not a multiple of 32"),
    ],
)
def test_what_cannot_be_is_refused_when_planned(settings: dict, field: str, words: str) -> None:
    with pytest.raises(ShapeError, match=words) as caught:
        describe(ConvnextConfig(**{**TINY, **settings}))
    assert caught.value.field == field
    assert caught.value.hint


def test_missing_weights_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BuildError, match=r"weights 'nowhere\.safetensors': no such file"):
        build(weights="nowhere.safetensors")

    def no_network(*arguments: object, **options: object) -> None:
        raise OSError("no network\nand more")

    monkeypatch.setattr(convnext.timm, "create_model", no_network)
    with pytest.raises(BuildError, match=r"cannot be had: no network; give `weights:` the path"):
        build(weights="pretrained")


def test_other_statistics_are_refused(theirs, tmp_path) -> None:
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(BuildError, match=r"test_convnext wants mean: \[0\.5, 0\.5, 0\.5\], the recipe says \[0\.485"):
        build(weights=str(tmp_path / "model.safetensors"))


def test_planning_imports_neither_torch_nor_timm() -> None:
    code = (
        "import sys; from fusionkit import registry; spec = registry.spec('encoders', 'pyramid.convnext'); "
        "spec.describe(spec.config(model='convnext_tiny')).grid; "
        "print(*(name for name in ('torch', 'timm', 'numpy') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""
