"""The tower is OpenCLIP's own: same layers, same weights, and plain words where a model or its weights do not fit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import open_clip
import pytest
import torch
from fusionkit_open_clip.architecture import tower
from fusionkit_open_clip.spec import VIT, VitConfig, describe
from fusionkit_open_clip.vit import Vit
from safetensors.torch import save_file
from torch import nn

from fusionkit.plugin import BlockSite, BuildError, ShapeError

MODEL = "ViT-S-32"


def build(layers: tuple[int, ...] = (1, 2), **settings: object) -> Vit:
    config = VitConfig(model=MODEL, **{"weights": "random", **settings})
    return Vit(config, BlockSite(info=describe(config), layers=layers)).eval()


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    """OpenCLIP's own tower with random weights."""
    torch.manual_seed(0)
    config = open_clip.get_model_config(MODEL)
    return open_clip.model._build_vision_tower(config["embed_dim"], config["vision_cfg"]).eval()


@pytest.fixture(scope="module")
def checkpoint(theirs: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tower as it stands in a checkpoint of the whole model."""
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file({**{f"visual.{k}": v for k, v in theirs.state_dict().items()}, "logit_scale": torch.ones(1)}, path)
    return path


def test_layers_are_those_of_open_clip(theirs: nn.Module, checkpoint: Path) -> None:
    x_BCHW = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    layers = (1, 3, 7)
    with torch.no_grad():
        found = build(layers, weights=str(checkpoint)).forward_layers(x_BCHW, layers)
        expected = theirs.forward_intermediates(
            x_BCHW, indices=[layer - 1 for layer in layers], intermediates_only=True, output_fmt="NLC"
        )["image_intermediates"]
    for ours, other in zip(found, expected, strict=True):
        assert torch.equal(ours, other)


def test_positions_are_resized_as_open_clip_does_it(checkpoint: Path, theirs: nn.Module) -> None:
    other = build(weights=str(checkpoint), image_size=(96, 320))
    state = {"visual.positional_embedding": theirs.positional_embedding.detach()}
    open_clip.model.resize_pos_embed(state, SimpleNamespace(visual=SimpleNamespace(grid_size=(3, 10))))
    assert torch.equal(other.visual.positional_embedding, state["visual.positional_embedding"])


def test_a_grid_of_as_many_tokens_but_another_shape_is_resized_too(checkpoint: Path) -> None:
    same, other = build(weights=str(checkpoint)), build(weights=str(checkpoint), image_size=(32, 49 * 32))
    assert same.visual.positional_embedding.shape == other.visual.positional_embedding.shape
    assert not torch.equal(same.visual.positional_embedding, other.visual.positional_embedding)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": "no_such_tag"}, r"'no_such_tag' are neither a file nor a tag of ViT-S-32; its tags are none"),
        ({"weights": "laion400m_e32", "model": "ViT-B-32-quickgelu"}, None),
        ({"weights": "openai", "model": "ViT-B-32"}, r"trained with the other GELU; use `model: ViT-B-32-quickgelu`"),
        ({"weights": "openai", "model": "ViT-B-32", "mean": (0.5, 0.5, 0.5)}, r"openai wants mean: \[0\.48145466"),
    ],
)
def test_weights_that_do_not_belong_say_what_does(
    settings: dict, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(known: dict) -> str:
        raise OSError("no network\nand more")

    monkeypatch.setattr(open_clip, "download_pretrained", no_network)
    config = VitConfig(**{"model": MODEL, **settings})
    expected = message or r"cannot be had: no network; give `weights:` the path of a checkpoint you have"
    with pytest.raises(BuildError, match=expected):
        Vit(config, BlockSite(info=describe(config), layers=(0,)))


def test_a_file_without_a_tower_is_named(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(BuildError, match=r"other\.safetensors holds no OpenCLIP vision tower"):
        build(weights=str(tmp_path / "other.safetensors"))


def test_a_tower_of_another_width_is_named(checkpoint: Path) -> None:
    config = VitConfig(model="ViT-M-32", weights=str(checkpoint))
    with pytest.raises(BuildError, match=r"does not fit the vision tower of ViT-M-32"):
        Vit(config, BlockSite(info=describe(config), layers=(1,)))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ViT-B-15", "OpenCLIP has no model 'ViT-B-15'"),
        ("RN50", "not OpenCLIP's own ViT"),
        ("ViT-SO400M-14-SigLIP", "not OpenCLIP's own ViT"),
    ],
)
def test_models_that_are_no_vit_of_open_clip(name: str, words: str) -> None:
    with pytest.raises(ShapeError, match=words) as caught:
        tower(name)
    assert caught.value.field == "model"


def test_every_plain_vit_is_described() -> None:
    """Of OpenCLIP's configurations, those that are plain ViTs plan; the others say why not."""
    described = []
    for name in open_clip.list_models():
        try:
            described.append(describe(VitConfig(model=name.replace("/", "-"), weights="random")).name)
        except ShapeError as error:
            assert "not OpenCLIP's own ViT" in str(error)  # noqa: PT017 - one of many
    assert len(described) >= 50


def test_planning_imports_neither_torch_nor_open_clip() -> None:
    code = (
        "import sys; from fusionkit import registry; spec = registry.spec('encoders', 'openclip.vit'); "
        "spec.describe(spec.config(model='ViT-B-16', weights='laion2b_s34b_b88k')).grid; "
        "print(*(name for name in ('torch', 'open_clip', 'numpy') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""
    assert VIT.name == "openclip.vit"
