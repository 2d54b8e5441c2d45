"""The encoder with its real weights: input sizes, against transformers, precision, and features kept on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fusionkit_real_small.convert import load_backbone
from fusionkit_real_small.dinov2 import Dinov2Small
from fusionkit_real_small.specs import Dinov2SmallConfig, describe_dinov2_small
from transformers import Dinov2Config, Dinov2Model

from fusionkit.errors import DataError, ShapeError
from fusionkit.plugin import BlockSite

LAYERS = (4, 8, 12)


def build(layers: tuple[int, ...] = LAYERS, **fields: object) -> Dinov2Small:
    config = Dinov2SmallConfig(**{"image_size": 112, **fields})
    return Dinov2Small(config, BlockSite(info=describe_dinov2_small(config), layers=layers)).eval()


def pixels(count: int = 2, side: int = 112) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_sizes_that_patches_do_not_tile_are_refused() -> None:
    with pytest.raises(ShapeError, match="image 100x100 is not a multiple of the patch 14x14"):
        describe_dinov2_small(Dinov2SmallConfig(image_size=100))


def test_layers_of_transformers_with_the_same_weights(backbone: None) -> None:
    """Dinov2Model with our tensors gives the same layers: names, position resampling and numbering agree."""
    model = Dinov2Model(
        Dinov2Config(hidden_size=384, num_attention_heads=6, num_hidden_layers=12, image_size=518, patch_size=14)
    ).eval()
    model.load_state_dict(as_transformers(load_backbone(), model.state_dict()))
    with torch.no_grad():
        expected = model(pixels(), output_hidden_states=True).hidden_states
        found = build((0, 1, 6, 12)).forward_layers(pixels(), (0, 1, 6, 12))
    for layer, x_BND in zip((0, 1, 6, 12), found, strict=True):
        torch.testing.assert_close(x_BND, expected[layer][:, 1:], rtol=1e-4, atol=1e-4)


def as_transformers(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our tensors by transformers' names; what we do not have (mask token, final norm) keeps its value."""
    named = dict(theirs)
    put = {
        "embeddings.cls_token": ours["class_token"].reshape(1, 1, -1),
        "embeddings.position_embeddings": ours["positions"][None],
        "embeddings.patch_embeddings.projection.weight": ours["patches.weight"],
        "embeddings.patch_embeddings.projection.bias": ours["patches.bias"],
    }
    parts = {"norm_attention": "norm1", "norm_mlp": "norm2", "up": "mlp.fc1", "down": "mlp.fc2"}
    prefix = next(name for name in theirs if ".0.norm1.weight" in name).removesuffix("0.norm1.weight")
    for layer in range(12):
        old, new = f"blocks.{layer}.", f"{prefix}{layer}."
        put[f"{new}layer_scale1.lambda1"] = ours[f"{old}scale_attention"]
        put[f"{new}layer_scale2.lambda1"] = ours[f"{old}scale_mlp"]
        for kind in ("weight", "bias"):
            for mine, other in parts.items():
                put[f"{new}{other}.{kind}"] = ours[f"{old}{mine}.{kind}"]
            put[f"{new}attention.o_proj.{kind}"] = ours[f"{old}out.{kind}"]
            for name, piece in zip("qkv", ours[f"{old}qkv.{kind}"].chunk(3), strict=True):
                put[f"{new}attention.{name}_proj.{kind}"] = piece
    assert not put.keys() - named.keys(), "transformers names its tensors otherwise"
    return {**named, **put}


def test_half_precision_and_rounding_with_the_real_weights(backbone: None) -> None:
    """The limits of the conformance kit, on the weights themselves."""
    encoder = build()
    with torch.no_grad():
        plain = encoder(pixels())
        exact = build().double()(pixels().double())
        low = build().to(torch.bfloat16)(pixels().to(torch.bfloat16))
        with torch.autocast("cpu", torch.bfloat16):
            mixed = encoder(pixels())
    for layer, x, double, half, auto in zip(LAYERS, plain, exact, low, mixed, strict=True):
        assert relative(x, double) <= 2e-6, layer
        assert relative(half, x) <= 2e-2, layer
        assert relative(auto, x) <= 2e-2, layer


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


# ------------------------------------------------------------------------------------------------ features on disk
def train_mode(encoder: Dinov2Small, x_BCHW: torch.Tensor) -> list[torch.Tensor]:
    """One frozen pass as training makes it."""
    with torch.no_grad():
        return encoder.train().forward_layers(x_BCHW, encoder.layers)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 1e-3), ("float32", 0.0)])
def test_features_are_computed_once(cache_home: Path, dtype: str, tolerance: float) -> None:
    torch.manual_seed(0)
    encoder = build(weights="random", cache=dtype, image_size=28, layers=(1, 2))
    x_BCHW = pixels(3, 28)
    with torch.no_grad():
        expected = encoder.forward_layers(x_BCHW, (1, 2))
    asked: list[int] = []
    compute = encoder._compute
    encoder._compute = lambda x, layers: asked.append(len(x)) or compute(x, layers)  # type: ignore[method-assign]
    for batch in (x_BCHW[:2], x_BCHW, x_BCHW.flip(0)):
        found = train_mode(encoder, batch)
    assert asked == [2, 1]
    for mine, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.flip(0), plain, rtol=tolerance, atol=tolerance)
    assert encoder.store((1, 2)).count() == 3


def test_only_frozen_training_uses_what_is_kept(cache_home: Path) -> None:
    encoder = build(weights="random", cache="float16", image_size=28, layers=(1,))
    x_BCHW = pixels(1, 28)
    with torch.no_grad():
        encoder.eval().forward_layers(x_BCHW, (1,))
    (trained,) = encoder.train().forward_layers(x_BCHW, (1,))
    assert trained.requires_grad
    assert not list(cache_home.rglob("*.npy"))


def test_other_weights_are_other_features(cache_home: Path) -> None:
    torch.manual_seed(0)
    first = build(weights="random", cache="float32", image_size=28, layers=(1,))
    second = build(weights="random", cache="float32", image_size=28, layers=(1,))
    x_BCHW = pixels(1, 28)
    assert not torch.equal(train_mode(first, x_BCHW)[0], train_mode(second, x_BCHW)[0])
    assert first.store((1,)).folder != second.store((1,)).folder


def test_an_unfinished_file_is_named(cache_home: Path) -> None:
    encoder = build(weights="random", cache="float16", image_size=28, layers=(1,))
    train_mode(encoder, pixels(1, 28))
    (file,) = cache_home.rglob("*.npy")
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DataError, match=r"\.npy: cannot be read .* delete it, it is computed anew"):
        train_mode(encoder, pixels(1, 28))
    np.save(file, np.zeros((1, 2, 3), np.float16))
    with pytest.raises(DataError, match=r"float16 \(1, 2, 3\), expected float16 \(1, 4, 384\); delete it"):
        train_mode(encoder, pixels(1, 28))


def test_a_full_or_missing_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    encoder = build(weights="random", cache="float16", image_size=28, layers=(1,))
    with pytest.raises(DataError, match=r"cannot be written .*XDG_CACHE_HOME, or `cache: none`"):
        train_mode(encoder, pixels(1, 28))
