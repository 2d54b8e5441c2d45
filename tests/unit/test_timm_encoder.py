"""`timm`: layers equal the library's own, pruning, prefix tokens, weights from files, and what it refuses."""

from __future__ import annotations

import copy
import pickle
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub.constants
import pytest
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from fusionkit import architectures
from fusionkit.blocks.encoders import timm_facts
from fusionkit.blocks.encoders.counts import Architecture
from fusionkit.blocks.encoders.specs import TimmConfig, describe_timm
from fusionkit.blocks.encoders.timm_encoder import TimmEncoder
from fusionkit.errors import BuildError, ShapeError
from fusionkit.plugin import BlockSite

facts_of = cache(timm_facts.facts_of)
Module = TypeVar("Module", bound=nn.Module)

TINY = "test_vit.r160_in1k"
PRE_NORM = "vit_xsmall_patch16_clip_224.tinyclip_yfcc15m"
"""Not in the table: a small CLIP, whose tokens are normalised before block 1."""


def build(model: str, *, layers: tuple[int, ...] | None = None, seed: int = 0, **options: Any) -> TimmEncoder:
    config = TimmConfig(model=model, **({"weights": "random"} | options))
    info = describe_timm(config)
    torch.manual_seed(seed)
    encoder = TimmEncoder(config, BlockSite(info=info, layers=layers or tuple(range(info.depth + 1))))
    return awake(encoder).eval()


def library(model: str, seed: int = 0, **options: Any) -> nn.Module:
    """The same model straight from timm: same seed, same weights."""
    torch.manual_seed(seed)
    return awake(timm.create_model(model, num_classes=0, **options)).eval()


def awake(model: Module) -> Module:
    """Layer scales at 1: as initialised (1e-5) they hide whatever a block computes."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.split(".")[-1].startswith("gamma"):
                parameter.fill_(1)
    return model


def pictures(encoder: TimmEncoder, count: int = 2) -> Tensor:
    return torch.randn(count, 3, *encoder.info.input_size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("model", "size"),
    [
        (TINY, (48, 64)),
        ("test_vit2.r160_in1k", (32, 32)),
        ("test_vit3.r160_in1k", (32, 48)),
        ("vit_small_patch16_dinov3.lvd1689m", (48, 32)),
        ("vit_small_patch14_reg4_dinov2.lvd142m", (28, 42)),
        ("vit_small_patch16_224.dino", (32, 32)),
        ("vit_base_patch16_siglip_224.v2_webli", (48, 32)),
        ("vit_base_patch16_clip_quickgelu_224.openai", (32, 32)),
        (PRE_NORM, (32, 48)),
    ],
)
def test_layers_equal_the_librarys(model: str, size: tuple[int, int]) -> None:
    listed = architectures.resolve("timm", model) is not None
    encoder = build(model, layers=(0, 1, 3), image_size=size, **({} if listed else {"info": facts_of(model)}))
    whole, x_BCHW = library(model, img_size=size), pictures(encoder)
    with torch.no_grad():
        layers = encoder(x_BCHW)
        expected = whole.forward_intermediates(
            x_BCHW, indices=[0, 2], norm=False, output_fmt="NLC", intermediates_only=True
        )
        torch.testing.assert_close(layers, [before_block_1(whole, x_BCHW), *expected])


def before_block_1(whole: nn.Module, x_BCHW: Tensor) -> Tensor:
    x = whole._pos_embed(whole.patch_embed(x_BCHW))
    x = whole.norm_pre(x[0] if isinstance(x, tuple) else x)
    return x[:, whole.num_prefix_tokens :]


def test_pre_norm_is_part_of_layer_0() -> None:
    encoder = build(PRE_NORM, layers=(0,), image_size=32, info=facts_of(PRE_NORM))
    assert isinstance(encoder.model.norm_pre, nn.LayerNorm)
    with torch.no_grad():
        layer = encoder(pictures(encoder))[0]
    torch.testing.assert_close(layer.mean(-1), torch.zeros(layer.shape[:2]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("stride", [4, 16])
def test_convnext_is_read_at_one_stride(stride: int) -> None:
    name = "test_convnext.r160_in1k"
    encoder, whole = build(name, stride=stride, image_size=64), library(name)
    x_BCHW = pictures(encoder)
    stage = {4: 0, 16: 2}[stride]
    with torch.no_grad():
        expected = whole.forward_intermediates(x_BCHW, indices=[stage], norm=False, intermediates_only=True)[0]
        layers = encoder(x_BCHW)
    assert len(layers) == encoder.info.depth + 1
    # Row-major: channels last, then rows and columns flattened.
    torch.testing.assert_close(layers[-1], expected.permute(0, 2, 3, 1).flatten(1, 2))


def test_layer_0_alone_needs_no_block() -> None:
    for name, options in ((TINY, {}), ("test_convnext.r160_in1k", {"stride": 8})):
        alone, whole = build(name, layers=(0,), **options), build(name, **options)
        assert not any("blocks.0" in key for key in alone.state_dict() if "stages.0" not in key)
        with torch.no_grad():
            torch.testing.assert_close(alone(pictures(alone))[0], whole(pictures(whole))[0])


def test_what_lies_beyond_the_deepest_layer_is_gone() -> None:
    names = set(build(TINY, layers=(2,)).state_dict())
    kept = {name.split(".")[1] for name in names}
    assert kept == {"cls_token", "pos_embed", "patch_embed", "blocks"}
    assert {name.split(".")[2] for name in names if "blocks" in name} == {"0", "1"}


def test_tap_streams_in_rising_order_and_lets_go_after_a_failure() -> None:
    encoder, seen = build(TINY), []
    x_BCHW = pictures(encoder)
    with torch.no_grad():
        encoder.tap(x_BCHW, (5, 0, 2), lambda layer, x_BND: seen.append(layer))
        torch.testing.assert_close(encoder.forward_layers(x_BCHW, (2,)), [encoder(x_BCHW)[2]])
    assert seen == [0, 2, 5]

    def stop(layer: int, x_BND: Tensor) -> None:
        raise KeyError(layer)

    with pytest.raises(KeyError):
        encoder.tap(x_BCHW, (1,), stop)
    # Nothing is handed to the failed call's consumer any more.
    with torch.no_grad():
        encoder.model.forward_features(x_BCHW)


def test_a_copy_reads_its_own_layers() -> None:
    encoder = build(TINY, layers=(2,))
    for copied in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        with torch.no_grad():
            copied.model.cls_token += 1
            expected = encoder(pictures(encoder))[0]
            assert not torch.equal(copied(pictures(encoder))[0], expected)
            assert torch.equal(encoder(pictures(encoder))[0], expected)


def test_rotary_tables_are_made_once_and_anew_when_what_they_follow_from_has_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder = build("vit_small_patch16_dinov3.lvd1689m", layers=(1,), image_size=32)
    rope: Any = encoder.model.rope
    made: list[object] = []
    original = type(rope).get_embed
    monkeypatch.setattr(type(rope), "get_embed", lambda self, **asked: made.append(self) or original(self, **asked))

    def look(encoder: TimmEncoder) -> Tensor:
        layer: Tensor = encoder(pictures(encoder).to(next(encoder.parameters()).dtype))[0]
        return layer

    with torch.inference_mode():
        first = look(encoder)
    with torch.no_grad():
        assert torch.equal(look(encoder), first)
        assert made == [rope]
        for copied in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
            rope.periods.mul_(2)
            assert torch.equal(look(copied), first), "the table of the copied, not of the copy"
            assert not torch.equal(look(encoder), first)
            rope.periods.div_(2)
        assert torch.equal(look(encoder), first)
        made.clear()
        torch.testing.assert_close(look(encoder.double()), first.double(), atol=1e-4, rtol=1e-4)
        assert made == [rope]
        look(encoder.train())
    assert made == [rope, rope], "training may draw the grid anew"
    look(encoder.eval()).sum().backward()


def test_gradients_flow_through_the_hooks() -> None:
    encoder = build(TINY, layers=(1, 3))
    sum(x.square().sum() for x in encoder(pictures(encoder))).backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


@pytest.mark.parametrize("model", ["vit_small_patch16_dinov3.lvd1689m", "test_convnext.r160_in1k"])
def test_a_model_built_without_storage_computes_its_buffers(model: str) -> None:
    options = {"image_size": 32} | ({"stride": 8} if "convnext" in model else {})
    real = build(model, layers=(1,), **options)
    with torch.device("meta"):
        empty = build(model, layers=(1,), **options, weights="pretrained")
    filled = empty.to_empty(device="cpu")
    for buffer in filled.buffers():
        if buffer.is_floating_point():
            buffer.fill_(1e6)
    filled.load_state_dict(real.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(filled(pictures(real)), real(pictures(real)))


# ------------------------------------------------------------------------------------------------------ weights
@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The weights of a model as the hub has them: unpruned, with its head, at its own input size."""
    torch.manual_seed(3)
    whole = timm.create_model(TINY)
    path = tmp_path / "model.safetensors"
    save_file({name: value.contiguous() for name, value in whole.state_dict().items()}, path)
    return path


def test_weights_come_from_a_file_or_its_folder(file: Path) -> None:
    torch.manual_seed(3)
    whole = timm.create_model(TINY).eval()
    for weights in (file, file.parent):
        encoder = build(TINY, layers=(2,), weights=str(weights))
        with torch.no_grad():
            x_BCHW = pictures(encoder)
            expected = whole.forward_intermediates(x_BCHW, indices=[1], output_fmt="NLC", intermediates_only=True)
            torch.testing.assert_close(encoder(x_BCHW), list(expected))


def test_positions_are_resized_to_the_planned_input(file: Path) -> None:
    encoder = build(TINY, layers=(1,), weights=str(file), image_size=(64, 96))
    assert encoder.model.pos_embed.shape == (1, 1 + 4 * 6, 64)


def test_a_model_in_the_cache_needs_no_network(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusionkit.blocks.encoders.timm_encoder.cached_file", lambda hub_id, name, revision: file)
    assert torch.equal(
        build(TINY, layers=(1,), weights="pretrained").model.cls_token,
        build(TINY, layers=(1,), weights=str(file)).model.cls_token,
    )


def test_a_revision_is_looked_for_in_the_cache_and_on_the_hub(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    cached = {"v1": file}
    monkeypatch.setattr(
        "fusionkit.blocks.encoders.timm_encoder.cached_file", lambda hub_id, name, revision: cached.get(revision)
    )
    assert build(TINY, layers=(1,), weights="pretrained", revision="v1").kept == 1

    def download(name: str, **options: Any) -> nn.Module:
        asked.append(options["pretrained_cfg_overlay"])
        raise OSError("no network in tests")

    monkeypatch.setattr("fusionkit.blocks.encoders.timm_encoder.check_reachable", lambda hub_id, ways_on: None)
    monkeypatch.setattr("fusionkit.blocks.encoders.timm_encoder.timm.create_model", download)
    with pytest.raises(BuildError, match=r"weights of 'timm/test_vit\.r160_in1k' .* no network in tests"):
        build(TINY, layers=(1,), weights="pretrained", revision="v2")
    assert asked == [{"hf_hub_id": f"timm/{TINY}@v2"}]
    with pytest.raises(ValidationError, match="only pretrained weights have revisions"):
        TimmConfig(model=TINY, weights=str(file), revision="v1")


def test_weights_that_do_not_fit_are_refused(file: Path) -> None:
    with pytest.raises(BuildError, match=r"model\.safetensors do not fit timm model 'test_vit2"):
        build("test_vit2.r160_in1k", weights=str(file))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "no such file or folder; expected pretrained, random or a path"),
        (lambda folder: folder.mkdir(), r"expected one \.safetensors file, or a folder with one; found none"),
        (
            lambda folder: [folder.mkdir(), *((folder / f"{n}.safetensors").touch() for n in "ab")],
            r"found a\.safetensors, b\.safetensors",
        ),
    ],
)
def test_paths_without_weights_are_named(tmp_path: Path, make: Any, message: str) -> None:
    make(tmp_path / "weights")
    with pytest.raises(BuildError, match=message):
        build(TINY, weights=str(tmp_path / "weights"))


@pytest.mark.usefixtures("empty_hub_cache")
def test_pretrained_weights_that_cannot_be_had_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BuildError) as caught:
        build(TINY, weights="pretrained")
    text = str(caught.value)
    for part in ("'timm/test_vit.r160_in1k'", "local cache", "HF_HUB_OFFLINE", "`weights:`", "`weights: random`"):
        assert part in text


@pytest.mark.usefixtures("unreachable_hub")
def test_a_hub_that_cannot_be_reached_is_told_at_once() -> None:
    with pytest.raises(BuildError, match=r"cannot be downloaded: .* cannot be reached \(.*Name or service"):
        build(TINY, weights="pretrained")


# ------------------------------------------------------------------------------------------- facts and refusals
def wrong(**facts: Any) -> Architecture:
    """The facts of TINY with something changed, in the model or in its one level."""
    right = facts_of(TINY).model_dump()
    level = {**right["levels"][0], **{name: value for name, value in facts.items() if name in right["levels"][0]}}
    return Architecture.model_validate(
        {**right, **{name: value for name, value in facts.items() if name in right}, "levels": (level,)}
    )


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"depth": 7}, "planned depth 7, timm .* says 6"),
        ({"width": 32}, "planned width 32, timm .* says 64"),
        ({"prefix_tokens": 5}, "planned prefix_tokens 5, timm .* says 1"),
        ({"mean": (0.4, 0.5, 0.5)}, r"planned mean \(0\.4, 0\.5, 0\.5\), timm .* says \(0\.5, 0\.5, 0\.5\)"),
        ({"stride": (8, 8)}, "planned stride 8, timm .* says 16"),
        ({"block_params": 1}, "planned parameters up to layer 6"),
    ],
)
def test_facts_are_checked_against_the_library(facts: dict[str, Any], message: str) -> None:
    with pytest.raises(BuildError, match=message):
        build(TINY, info=wrong(**facts))


def test_unlisted_names_tell_the_ways_on() -> None:
    with pytest.raises(ShapeError) as caught:
        describe_timm(TimmConfig(model=PRE_NORM))
    for part in ("not in the built-in table", "`info:`", f"fusionkit.testing.architectures {PRE_NORM}", "plan --meta"):
        assert part in str(caught.value)
    assert caught.value.field == "model"
    with pytest.raises(ShapeError, match=r"listed and similar: vit_large_patch16_dinov3\.lvd1689m"):
        describe_timm(TimmConfig(model="vit_large_patch16_dinov3.lvd"))


def test_unlisted_names_are_planned_by_asking_the_library() -> None:
    with architectures.asking_libraries():
        info = describe_timm(TimmConfig(model=PRE_NORM))
    assert (info.prefix_tokens, info.mean[0]) == (1, pytest.approx(0.481, abs=0.001))


def test_an_untagged_name_gets_its_one_listed_tag() -> None:
    assert describe_timm(TimmConfig(model="vit_small_patch14_dinov2")).name == "vit_small_patch14_dinov2.lvd142m"
    with pytest.raises(ShapeError, match=r"convnext_tiny\.dinov3_lvd1689m, convnext_tiny\.in12k_ft_in1k"):
        describe_timm(TimmConfig(model="convnext_tiny"))


@pytest.mark.parametrize(
    ("options", "field", "message"),
    [
        ({"model": "test_convnext"}, "stride", r"has layers at strides 4, 8, 16, 32 \(say which"),
        ({"model": "test_convnext", "stride": 14}, "stride", r"has no layers at stride 14 \(use 4, 8, 16, 32\)"),
    ],
)
def test_strides_must_be_chosen_among_those_there_are(options: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(ShapeError, match=message) as caught:
        describe_timm(TimmConfig(**options))
    assert caught.value.field == field


def test_an_image_size_that_is_no_multiple_of_the_patch_is_refused() -> None:
    with pytest.raises(
        ShapeError, match=r"image 232x232 is not a multiple of the patch of 14 px \(use 224x224\)"
    ) as caught:
        describe_timm(TimmConfig(model="vit_small_patch14_dinov2.lvd142m", image_size=224 + 8))
    assert caught.value.field == "image_size"


def test_models_without_blocks_on_one_grid_are_refused() -> None:
    with pytest.raises(BuildError, match=r"'test_resnet\.r160_in1k' \(ResNet\) has no list of blocks on one grid"):
        facts_of("test_resnet.r160_in1k")
    with pytest.raises(BuildError, match="has no model 'no_such_model'"):
        facts_of("no_such_model")


def test_statistics_of_the_recipe_go_before_the_models_own() -> None:
    encoder = build(TINY, layers=(1,), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert (encoder.info.mean, encoder.info.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
