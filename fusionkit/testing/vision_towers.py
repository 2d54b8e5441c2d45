"""Configs of known vision towers, entered by hand: the hub cannot be asked when the table is generated.

Source of every entry: the published config.json and preprocessor_config.json of the hub id, from memory. Each is checked
against its `twin`, the timm model of the same weights, which the library itself measures: depth, width, patch,
statistics and parameters must agree, but for what is known to differ (`expected_difference`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fusionkit.blocks.encoders.towers import Tower

HALVES = [0.5, 0.5, 0.5]
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
OPENAI = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])


@dataclass(frozen=True, slots=True)
class KnownTower:
    """An entry of the table, and the timm model it is checked against."""

    facts: dict[str, Any]
    twin: str


def expected_difference(tower: Tower) -> int:
    """Parameters that transformers has and timm leaves out, for the same published weights.

    DINOv3: biases of queries and values, which are zero in effect. DINOv2 with registers: a position of the class token.
    """
    if tower.model_type == "dinov3_vit":
        return tower.depth * tower.width * (int(tower.fields["query_bias"]) + int(tower.fields["value_bias"]))
    return tower.width if tower.model_type == "dinov2_with_registers" else 0


def _known(
    twin: str, licence: str, statistics: tuple[list[float], list[float]], model_type: str, **config: Any
) -> KnownTower:
    return KnownTower(
        {
            "config": {"model_type": model_type, **config},
            "preprocessor": {"image_mean": statistics[0], "image_std": statistics[1]},
            "licence": licence,
            "source": "published config.json, entered by hand; parameters are those of its timm twin",
        },
        twin,
    )


def _sizes(width: int, depth: int, heads: int, hidden: int | None = None) -> dict[str, int]:
    sizes = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads}
    return sizes if hidden is None else {**sizes, "intermediate_size": hidden}


_SHAPES = {
    "small": _sizes(384, 12, 6),
    "base": _sizes(768, 12, 12),
    "large": _sizes(1024, 24, 16),
    "giant": _sizes(1536, 40, 24),
    "so400m": _sizes(1152, 27, 16, 4304),
}
_MLP = {"small": 1536, "base": 3072, "large": 4096, "so400m": 4304}


def _siglip() -> Iterator[tuple[str, KnownTower]]:
    for size, patch, image, stated in (
        ("base", 16, 224, 224),
        ("base", 16, 256, 256),
        ("base", 16, 384, 384),
        ("base", 16, 512, 512),
        ("large", 16, 256, 256),
        ("large", 16, 384, 384),
        ("large", 16, 512, 512),
        ("so400m", 14, 224, 224),
        ("so400m", 14, 378, 384),
        ("so400m", 16, 256, 256),
        ("so400m", 16, 384, 384),
        ("so400m", 16, 512, 512),
    ):
        config = {**_SHAPES[size], "intermediate_size": _MLP[size], "patch_size": patch, "image_size": stated}
        twin = f"vit_{size}_patch{patch}_siglip_{image}.v2_webli"
        known = _known(twin, "apache-2.0", (HALVES, HALVES), "siglip_vision_model", **config)
        yield f"google/siglip2-{size}-patch{patch}-{stated}", known
        # The first generation, in the sizes it shares with the second.
        if (size, image) in {
            ("base", 224),
            ("base", 256),
            ("base", 384),
            ("large", 256),
            ("large", 384),
        } or patch == 14:
            yield f"google/siglip-{size}-patch{patch}-{stated}", known
    for size in ("base", "so400m"):
        config = {**_SHAPES[size], "intermediate_size": _MLP[size], "patch_size": 16, "num_patches": 256}
        twin = f"vit_{size}_patch16_siglip_256.v2_webli"
        known = _known(twin, "apache-2.0", (HALVES, HALVES), "siglip2_vision_model", **config)
        yield f"google/siglip2-{size}-patch16-naflex", known


def _dino() -> Iterator[tuple[str, KnownTower]]:
    for size in ("small", "base"):
        for patch in (8, 16):
            config = {**_SHAPES[size], "intermediate_size": _MLP[size], "patch_size": patch, "image_size": 224}
            twin = f"vit_{size}_patch{patch}_224.dino"
            yield f"facebook/dino-vit{size[0]}{patch}", _known(twin, "apache-2.0", IMAGENET, "vit", **config)
    for size in ("small", "base", "large", "giant"):
        gated = {"use_swiglu_ffn": True} if size == "giant" else {}
        config = {**_SHAPES[size], "patch_size": 14, "image_size": 518, **gated}
        twin = f"vit_{size}_patch14_dinov2.lvd142m"
        yield f"facebook/dinov2-{size}", _known(twin, "apache-2.0", IMAGENET, "dinov2", **config)
        twin = f"vit_{size}_patch14_reg4_dinov2.lvd142m"
        known = _known(twin, "apache-2.0", IMAGENET, "dinov2_with_registers", **config, num_register_tokens=4)
        yield f"facebook/dinov2-with-registers-{size}", known
    plain = {"patch_size": 16, "image_size": 224, "num_register_tokens": 4}
    silu: dict[str, Any] = {"use_gated_mlp": True, "hidden_act": "silu"}
    for name, twin, config in (
        ("vits16", "small", _sizes(384, 12, 6, 1536)),
        ("vits16plus", "small_plus", {**_sizes(384, 12, 6, 1536), **silu}),
        ("vitb16", "base", _sizes(768, 12, 12, 3072)),
        ("vitl16", "large", _sizes(1024, 24, 16, 4096)),
        ("vith16plus", "huge_plus", {**_sizes(1280, 32, 20, 5120), **silu}),
        ("vit7b16", "7b", {**_sizes(4096, 40, 32, 8192), **silu, "query_bias": False, "value_bias": False}),
    ):
        timm_name = f"vit_{twin}_patch16_dinov3.lvd1689m"
        known = _known(timm_name, "dinov3-license", IMAGENET, "dinov3_vit", **config, **plain)
        yield f"facebook/dinov3-{name}-pretrain-lvd1689m", known


def _clip() -> Iterator[tuple[str, KnownTower]]:
    for name, size, patch, image in (
        ("base-patch16", "base", 16, 224),
        ("base-patch32", "base", 32, 224),
        ("large-patch14", "large", 14, 224),
        ("large-patch14-336", "large", 14, 336),
    ):
        config = {**_SHAPES[size], "intermediate_size": _MLP[size], "patch_size": patch, "image_size": image}
        twin = f"vit_{size}_patch{patch}_clip_quickgelu_{image}.openai"
        yield f"openai/clip-vit-{name}", _known(twin, "mit", OPENAI, "clip_vision_model", **config)
    config = {**_SHAPES["base"], "intermediate_size": 3072, "patch_size": 16, "image_size": 224}
    known = _known("vit_base_patch16_224.augreg_in21k", "apache-2.0", (HALVES, HALVES), "vit", **config)
    yield "google/vit-base-patch16-224-in21k", known


TOWERS = dict(sorted([*_siglip(), *_dino(), *_clip()]))
"""Hub id -> entry."""
