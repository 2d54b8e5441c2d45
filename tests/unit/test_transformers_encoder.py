"""`transformers`: layers equal the library's own, pruning, prefix tokens, weights from folders, and what it refuses."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
import transformers
from pydantic import ValidationError
from torch import Tensor, nn

from fusionkit import architectures
from fusionkit.blocks.encoders.tower_parts import CLASSES
from fusionkit.blocks.encoders.towers import DEFAULTS, read_tower
from fusionkit.blocks.encoders.transformers_encoder import TransformersEncoder
from fusionkit.blocks.encoders.transformers_specs import TransformersConfig, describe_transformers
from fusionkit.errors import BuildError, ShapeError
from fusionkit.plugin import BlockSite

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8}
TOWERS: dict[str, dict[str, Any]] = {
    "siglip_vision_model": {"intermediate_size": 48, "image_size": 32},
    "siglip2_vision_model": {"intermediate_size": 48, "num_patches": 16},
    "clip_vision_model": {"intermediate_size": 48, "image_size": 32},
    "dinov2": {"image_size": 32, "mlp_ratio": 2},
    "dinov2_with_registers": {"image_size": 32, "mlp_ratio": 2, "use_swiglu_ffn": True},
    "dinov3_vit": {"intermediate_size": 48, "num_register_tokens": 4, "use_gated_mlp": True},
    "vit": {"intermediate_size": 48, "image_size": 32, "qkv_bias": False},
}
PREFIX = {"siglip_vision_model": 0, "siglip2_vision_model": 0, "dinov2_with_registers": 5, "dinov3_vit": 5}
SIZES = ((32, 32), (48, 16))


def described(model_type: str, **options: Any) -> TransformersConfig:
    return TransformersConfig(config={"model_type": model_type, **SMALL, **TOWERS[model_type]}, **options)


def build(config: TransformersConfig, layers: tuple[int, ...] | None = None, seed: int = 0) -> TransformersEncoder:
    info = describe_transformers(config)
    torch.manual_seed(seed)
    return TransformersEncoder(config, BlockSite(info=info, layers=layers or tuple(range(info.depth + 1)))).eval()


def pictures(encoder: TransformersEncoder, count: int = 2) -> Tensor:
    return torch.randn(count, 3, *encoder.info.input_size, generator=torch.Generator().manual_seed(1))


def whole_model(model_type: str) -> nn.Module:
    """The library's model, unpruned."""
    factory = getattr(transformers, CLASSES[model_type])
    torch.manual_seed(0)
    return factory(factory.config_class(**SMALL, **TOWERS[model_type])).eval()


# ------------------------------------------------------------------------------------------------------- layers
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("model_type", TOWERS)
def test_layers_are_the_librarys_hidden_states(model_type: str, size: tuple[int, int]) -> None:
    encoder, whole = build(described(model_type, image_size=size)), whole_model(model_type)
    encoder.model.load_state_dict(whole.state_dict(), strict=False)
    x_BCHW = pictures(encoder)
    arguments = encoder._arguments(x_BCHW)
    with torch.no_grad():
        if model_type == "siglip2_vision_model":
            arguments["pixel_attention_mask"] = torch.ones(arguments["pixel_values"].shape[:2])
        expected = whole(**arguments, output_hidden_states=True).hidden_states
        found = encoder(x_BCHW)
    assert len(expected) == len(found) == 4
    prefix = encoder.info.prefix_tokens
    assert prefix == PREFIX.get(model_type, 1)
    for layer, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        torch.testing.assert_close(ours, theirs[:, prefix:], msg=lambda text, layer=layer: f"layer {layer}: {text}")


@pytest.mark.parametrize("model_type", TOWERS)
def test_parameters_are_planned_at_every_depth(model_type: str) -> None:
    config = described(model_type, image_size=(16, 32))
    info = describe_transformers(config)
    with torch.device("meta"):
        for deepest in range(info.depth + 1):
            encoder = TransformersEncoder(config, BlockSite(info=info, layers=(deepest,)))
            assert sum(p.numel() for p in encoder.parameters()) == info.params((deepest,))
            names = {name.split(".")[-2] for name, _ in encoder.named_parameters()}
            assert not names & {"post_layernorm", "layernorm", "norm", "pooler", "head"}
            assert not any("mask_token" in name for name, _ in encoder.named_parameters())


def test_flagship_encoders_have_the_size_of_their_timm_twins() -> None:
    siglip = describe_transformers(TransformersConfig(model="google/siglip2-so400m-patch16-384"))
    assert (siglip.params((27,)), str(siglip.grid), siglip.prefix_tokens) == (413_016_048, "24x24", 0)
    dino = describe_transformers(TransformersConfig(model="facebook/dinov3-vitl16-pretrain-lvd1689m"))
    assert (str(dino.grid), dino.prefix_tokens, dino.licence) == ("14x14", 5, "dinov3-license")
    with torch.device("meta"):
        config = TransformersConfig(model="facebook/dinov3-vitl16-pretrain-lvd1689m")
        encoder = TransformersEncoder(config, BlockSite(info=dino, layers=(11, 24)))
    assert sum(p.numel() for p in encoder.parameters()) == dino.params((24,))


def test_tap_streams_in_rising_order_and_lets_go_after_a_failure() -> None:
    encoder, seen = build(described("dinov3_vit")), []
    x_BCHW = pictures(encoder)
    with torch.no_grad():
        encoder.tap(x_BCHW, (3, 0, 2), lambda layer, x_BND: seen.append(layer))
    assert seen == [0, 2, 3]

    def stop(layer: int, x_BND: Tensor) -> None:
        raise KeyError(layer)

    with pytest.raises(KeyError):
        encoder.tap(x_BCHW, (1,), stop)
    assert encoder._tap.consume is None


def test_a_frozen_tower_in_training_mode_gives_the_same() -> None:
    """DINOv3 was pretrained with random scales of its positions."""
    encoder = build(described("dinov3_vit"))
    with torch.no_grad():
        x_BCHW = pictures(encoder)
        torch.testing.assert_close(encoder.train()(x_BCHW), encoder.eval()(x_BCHW), rtol=0, atol=0)


def test_a_copy_reads_its_own_layers() -> None:
    encoder = build(described("clip_vision_model"), layers=(2,))
    for copied in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        with torch.no_grad():
            copied.model.embeddings.class_embedding += 1
            expected = encoder(pictures(encoder))[0]
            assert not torch.equal(copied(pictures(encoder))[0], expected)
            assert torch.equal(encoder(pictures(encoder))[0], expected)


def test_a_wrong_number_of_prefix_tokens_is_told() -> None:
    encoder = build(described("dinov3_vit"))
    encoder._tap.prefix_tokens = 1
    with pytest.raises(ShapeError, match=r"dinov3_vit: layer 0 has 789 tokens, planned are 1 prefix tokens and 784"):
        encoder(pictures(encoder))


@pytest.mark.parametrize("model_type", TOWERS)
def test_a_model_built_without_storage_computes_its_buffers(model_type: str) -> None:
    config = described(model_type)
    real = build(config, layers=(2,))
    before = torch.random.get_rng_state()
    with torch.device("meta"):
        empty = TransformersEncoder(config, BlockSite(info=real.info, layers=(2,))).eval()
    assert torch.equal(torch.random.get_rng_state(), before)
    filled = empty.to_empty(device="cpu")
    for buffer in filled.buffers():
        buffer.fill_(77)
    filled.load_state_dict(real.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(filled(pictures(real)), real(pictures(real)))


# ------------------------------------------------------------------------------------------------------ weights
@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A snapshot as the hub has it: config.json, safetensors and preprocessor_config.json."""
    whole_model("dinov3_vit").save_pretrained(tmp_path / "dino")
    preprocessor = {"do_normalize": True, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "dino" / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return tmp_path / "dino"


def test_a_folder_is_planned_and_loaded_with_its_own_statistics(folder: Path) -> None:
    config = TransformersConfig(model=str(folder), image_size=32)
    info = describe_transformers(config)
    assert (info.mean, info.std, info.prefix_tokens) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 5)
    assert info.licence == "unknown: see its folder"
    encoder, whole = build(config), whole_model("dinov3_vit")
    with torch.no_grad():
        expected = whole(pictures(encoder), output_hidden_states=True).hidden_states
        torch.testing.assert_close(encoder(pictures(encoder))[2], expected[2][:, 5:])


def test_weights_of_a_folder_fill_a_described_tower(folder: Path) -> None:
    options = {"image_size": 32, "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    encoder = build(described("dinov3_vit", weights=str(folder), **options))
    other = build(TransformersConfig(model=str(folder), image_size=32))
    assert torch.equal(encoder.model.embeddings.cls_token, other.model.embeddings.cls_token)
    with pytest.raises(BuildError, match=r"says mean \[0\.1, .* planned are \[0\.5, .* give them as `mean` and `std`"):
        build(described("dinov3_vit", weights=str(folder)))


def test_the_vision_part_of_a_two_tower_model_is_taken(tmp_path: Path) -> None:
    vision = {**SMALL, **TOWERS["siglip_vision_model"]}
    text = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 9,
    }
    torch.manual_seed(0)
    whole = transformers.SiglipModel(transformers.SiglipConfig(vision_config=vision, text_config=text))
    whole.save_pretrained(tmp_path / "both")
    encoder = build(TransformersConfig(model=str(tmp_path / "both"), mean=(0.5,) * 3, std=(0.5,) * 3))
    stored = whole.state_dict()["vision_model.embeddings.patch_embedding.weight"]
    assert torch.equal(encoder.model.embeddings.patch_embedding.weight, stored)
    assert encoder.info.depth == 3


def test_a_folder_without_statistics_wants_them_in_the_recipe(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ShapeError, match=r"preprocessor_config\.json: no such file, .* \(copy it .*, or give `mean`"):
        describe_transformers(TransformersConfig(model=str(folder)))
    given = TransformersConfig(model=str(folder), mean=(0.5,) * 3, std=(0.5,) * 3)
    assert describe_transformers(given).mean == (0.5, 0.5, 0.5)


def test_statistics_of_the_recipe_go_before_the_models_own(folder: Path) -> None:
    """The released CoME-VL feeds DINOv3 with the pixels of SigLIP."""
    config = TransformersConfig(model=str(folder), mean=(0.5,) * 3, std=(0.5,) * 3, image_size=32)
    assert describe_transformers(config).mean == (0.5, 0.5, 0.5)
    assert build(config).info.std == (0.5, 0.5, 0.5)


def test_weights_that_do_not_fit_are_named(folder: Path) -> None:
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**stored, "num_hidden_layers": 4}))
    with pytest.raises(BuildError, match=r"do not fit .*: missing: model\.layer\.3"):
        build(TransformersConfig(model=str(folder)))
    (folder / "config.json").write_text(json.dumps({**stored, "num_hidden_layers": 2}))
    with pytest.raises(BuildError, match=r"do not fit .*: unexpected: model\.layer\.2"):
        build(TransformersConfig(model=str(folder)))
    (folder / "config.json").write_text(json.dumps({**stored, "intermediate_size": 64}))
    with pytest.raises(BuildError, match=r"do not fit .*: mismatched: "):
        build(TransformersConfig(model=str(folder)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"config\.json: cannot be read"),
        ("[]", r"config\.json: expected a JSON object"),
        ('{"model_type": "resnet"}', r"model_type: expected one of siglip_vision_model, .*, got resnet"),
        ('{"model_type": "vit", "num_channels": 1}', r"num_channels: expected 3, got 1"),
        ('{"model_type": "vit", "patch_size": [16, 8]}', r"patch_size: expected a whole number .*, got \[16, 8\]"),
        ('{"model_type": "vit", "image_size": 8}', r"image_size: 8 is less than one patch of 16"),
        ('{"model_type": "vit", "num_attention_heads": 5}', r"5 does not divide hidden_size 768"),
        (
            '{"model_type": "siglip2_vision_model", "num_patches": 255}',
            r"num_patches: expected a square number, got 255",
        ),
        ('{"model_type": "dinov3_vit", "num_register_tokens": -1}', r"num_register_tokens: expected a whole number"),
    ],
)
def test_configs_that_cannot_be_meant_are_named(folder: Path, content: str, message: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ShapeError, match=message):
        describe_transformers(TransformersConfig(model=str(folder)))


@pytest.mark.parametrize(
    ("preprocessor", "message"),
    [
        ({"image_mean": [0.5], "image_std": [0.5] * 3}, r"image_mean: expected three numbers, got \[0\.5\]"),
        ({"do_rescale": False}, "expected pixels divided by 255"),
        ({"rescale_factor": 1 / 127.5}, "expected pixels divided by 255"),
    ],
)
def test_preprocessors_that_cannot_be_meant_are_named(folder: Path, preprocessor: Any, message: str) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    with pytest.raises(ShapeError, match=message):
        describe_transformers(TransformersConfig(model=str(folder)))


def test_a_folder_has_no_revisions(folder: Path) -> None:
    with pytest.raises(ShapeError, match="is a folder here; only a hub id has revisions"):
        describe_transformers(TransformersConfig(model=str(folder), revision="main"))


def test_pixels_that_are_not_normalised_have_statistics_too(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False}))
    info = describe_transformers(TransformersConfig(model=str(folder)))
    assert (info.mean, info.std) == ((0.0,) * 3, (1.0,) * 3)


def test_paths_without_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="no such folder; expected pretrained, random or a folder of safetensors"):
        build(described("vit", weights=str(tmp_path / "none")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BuildError, match="no weights in the folder"):
        build(described("vit", weights=str(tmp_path / "empty")))


@pytest.mark.usefixtures("empty_hub_cache")
def test_pretrained_weights_that_cannot_be_had_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BuildError) as caught:
        build(TransformersConfig(model="facebook/dinov3-vits16-pretrain-lvd1689m", revision="main"))
    for part in ("'facebook/dinov3-vits16-pretrain-lvd1689m'", "local cache", "HF_HUB_OFFLINE", "`weights: random`"):
        assert part in str(caught.value)


@pytest.mark.usefixtures("unreachable_hub")
def test_a_hub_that_cannot_be_reached_is_told_at_once() -> None:
    with pytest.raises(BuildError, match=r"cannot be downloaded: .* cannot be reached \(.*Name or service"):
        build(TransformersConfig(model="facebook/dinov2-small"))


# ------------------------------------------------------------------------------------------- facts and refusals
def test_unlisted_names_tell_the_ways_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ShapeError) as caught:
        describe_transformers(TransformersConfig(model="google/siglip2-base-patch16-225"))
    for part in ("neither a folder here nor in the built-in table", "siglip2-base-patch16-224", "plan --meta"):
        assert part in str(caught.value)
    answer = {
        "config": {"model_type": "vit"},
        "preprocessor": {"do_normalize": False},
        "licence": "unknown: see its card",
    }
    monkeypatch.setattr(architectures, "_ask", lambda library, name: answer)
    with architectures.asking_libraries():
        assert describe_transformers(TransformersConfig(model="someone/new")).std == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give exactly one of `model` and `config`"),
        ({"model": "a/b", "config": {"model_type": "vit"}}, "give exactly one of `model` and `config`"),
        ({"config": {"model_type": "resnet"}}, "model_type: expected one of siglip_vision_model"),
        ({"config": {"model_type": "vit", "mlp_ratio": 4}}, "mlp_ratio: not a field of model_type vit"),
        ({"config": {"model_type": "vit"}, "weights": "pretrained"}, "a `config` has no pretrained weights"),
        ({"config": {"model_type": "vit"}, "revision": "main"}, "only a hub id has revisions"),
        ({"model": "a/b", "mean": [0.5, 0.5, 0.5]}, "give both of `mean` and `std`, or neither"),
        ({"model": "a/b", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.0, 0.5]}, "must be positive in every channel"),
    ],
)
def test_recipes_that_cannot_be_meant_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TransformersConfig.model_validate_json(json.dumps(settings))


@pytest.mark.parametrize("model_type", DEFAULTS)
def test_defaults_are_the_librarys(model_type: str) -> None:
    config = getattr(transformers, CLASSES[model_type]).config_class()
    assert {name: getattr(config, name) for name in DEFAULTS[model_type]} == DEFAULTS[model_type]
    assert read_tower({"model_type": model_type}).depth == 12


def test_an_image_size_that_is_no_multiple_of_the_patch_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"image 33x32 is not a multiple of the patch of 8 px \(use 32x32\)") as caught:
        describe_transformers(described("vit", image_size=(33, 32)))
    assert caught.value.field == "image_size"
