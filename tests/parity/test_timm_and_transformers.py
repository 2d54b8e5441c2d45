"""The same layer from timm and from transformers agrees when both hold the same weights, at small sizes.

Layer numbers mean the same in both: 0 is the input of block 1, l the output of block l. The random state dict is
transformers'; the map to timm's names is written here, independently of both libraries' converters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from fusionkit.blocks.encoders.counts import Architecture
from fusionkit.blocks.encoders.specs import TimmConfig, describe_timm
from fusionkit.blocks.encoders.timm_encoder import TimmEncoder
from fusionkit.blocks.encoders.transformers_encoder import TransformersEncoder
from fusionkit.blocks.encoders.transformers_specs import TransformersConfig, describe_transformers
from fusionkit.plugin import BlockSite, EncoderInfo

LAYERS = (0, 1, 2, 3)
TOLERANCE = 2e-6
"""Largest difference over the largest value, float32."""


def described(model_type: str, **fields: Any) -> TransformersConfig:
    config = {"model_type": model_type, "num_hidden_layers": 3, **fields}
    return TransformersConfig(config=config, image_size=32)


def transformers_encoder(config: TransformersConfig) -> TransformersEncoder:
    """All parameters random: at their start, class tokens, positions and layer scales hide mistakes."""
    torch.manual_seed(0)
    encoder = TransformersEncoder(config, BlockSite(info=describe_transformers(config), layers=LAYERS)).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder


def timm_encoder(name: str, changes: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> TimmEncoder:
    """timm's model of the same family, made as small as the other."""
    import timm

    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda model, **options: create(model, **{**options, **changes}))
    level = {
        "stem_params": 0,
        "position_params": 0,
        "block_params": 0,
        "stem_flops": 0,
        "block_flops": 0,
        "attention_flops": 0,
        "depth": changes["depth"],
        "width": changes["embed_dim"],
        "stride": (8, 8),
    }
    facts: Any = timm.get_pretrained_cfg(name)
    prefix = create(name, num_classes=0, **changes).num_prefix_tokens
    info = Architecture(
        licence="none",
        input_size=(32, 32),
        fixed_size=True,
        mean=facts.mean,
        std=facts.std,
        prefix_tokens=prefix,
        levels=(level,),
    )
    config = TimmConfig(model=name, image_size=32, weights="random", info=info)
    monkeypatch.setattr("fusionkit.blocks.encoders.timm_encoder.check_params", lambda *arguments: None)
    return TimmEncoder(config, BlockSite(info=describe_timm(config), layers=LAYERS)).eval()


def renamed(state: Mapping[str, Tensor], rules: list[tuple[str, str]]) -> dict[str, Tensor]:
    """Names rewritten by the first rule that fits; what fits none keeps its name."""
    found = {}
    for name, value in state.items():
        for pattern, text in rules:
            changed, hits = re.subn(pattern, text, name)
            if hits:
                name = changed
        found[name] = value
    return found


def join_qkv(state: dict[str, Tensor], with_bias: bool) -> dict[str, Tensor]:
    """q, k and v stand in one matrix in timm; DINOv3's key has no bias, and timm then holds none at all."""
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    for block in range(depth):
        for kind in ("weight", "bias") if with_bias else ("weight",):
            parts = [state.pop(f"blocks.{block}.attn.{part}.{kind}") for part in "qkv"]
            state[f"blocks.{block}.attn.qkv.{kind}"] = torch.cat(parts)
    return state


BLOCK_RULES = [
    (r"^encoder\.layers\.|^model\.layer\.|^encoder\.layer\.|^layers\.", "blocks."),
    (r"\.(self_attn|attention)\.(q|k|v)_proj\.", r".attn.\2."),
    (r"\.(self_attn|attention)\.(out_proj|o_proj)\.", ".attn.proj."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
    (r"\.mlp\.up_proj\.", ".mlp.fc1."),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
]


def siglip_to_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    rules = [
        (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
        (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
        *BLOCK_RULES,
    ]
    found = join_qkv(renamed(state, rules), with_bias=True)
    found["pos_embed"] = found["pos_embed"][None]
    return found


def clip_to_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    rules = [
        (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
        (r"^embeddings\.class_embedding$", "cls_token"),
        (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
        (r"^pre_layrnorm\.", "norm_pre."),
        *BLOCK_RULES,
    ]
    found = join_qkv(renamed(state, rules), with_bias=True)
    return {**found, "pos_embed": found["pos_embed"][None], "cls_token": found["cls_token"][None, None]}


def dinov2_to_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    rules = [
        (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"^embeddings\.cls_token$", "cls_token"),
        (r"^embeddings\.position_embeddings$", "pos_embed"),
        (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
        *BLOCK_RULES,
    ]
    return join_qkv(renamed(state, rules), with_bias=True)


def dinov3_to_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    rules = [
        (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
        (r"^embeddings\.cls_token$", "cls_token"),
        (r"^embeddings\.register_tokens$", "reg_token"),
        (r"\.layer_scale(\d)\.lambda1$", r".gamma_\1"),
        *BLOCK_RULES,
    ]
    found = renamed(state, rules)
    for name in [name for name in found if re.search(r"\.attn\.[qv]\.bias$", name)]:
        del found[name]
    return join_qkv(found, with_bias=False)


SMALL = {"hidden_size": 32, "num_attention_heads": 2, "patch_size": 8}
TIMM_SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 2, "patch_size": 8}

CASES: dict[str, tuple[TransformersConfig, str, dict[str, Any], Callable[[dict[str, Tensor]], dict[str, Tensor]]]] = {
    "siglip": (
        described("siglip_vision_model", **SMALL, intermediate_size=72, image_size=32),
        "vit_so400m_patch16_siglip_256.v2_webli",
        {**TIMM_SMALL, "mlp_ratio": 72 / 32, "global_pool": "", "class_token": False},
        siglip_to_timm,
    ),
    "siglip2": (
        described("siglip2_vision_model", **SMALL, intermediate_size=72, num_patches=16),
        "vit_so400m_patch16_siglip_256.v2_webli",
        {**TIMM_SMALL, "mlp_ratio": 72 / 32, "global_pool": "", "class_token": False},
        siglip_to_timm,
    ),
    "dinov3": (
        described("dinov3_vit", **SMALL, intermediate_size=64, num_register_tokens=4),
        "vit_small_patch16_dinov3.lvd1689m",
        {**TIMM_SMALL, "mlp_ratio": 2.0},
        dinov3_to_timm,
    ),
    "dinov2": (
        described("dinov2", **SMALL, mlp_ratio=2, image_size=32),
        "vit_small_patch14_dinov2.lvd142m",
        {**TIMM_SMALL, "mlp_ratio": 2.0},
        dinov2_to_timm,
    ),
    "clip": (
        described("clip_vision_model", **SMALL, intermediate_size=64, image_size=32),
        "vit_base_patch16_clip_quickgelu_224.openai",
        {**TIMM_SMALL, "mlp_ratio": 2.0},
        clip_to_timm,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_layers_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, model, changes, convert = CASES[name]
    ours = transformers_encoder(config)
    if name == "dinov3":
        with torch.no_grad():
            for parameter_name, parameter in ours.named_parameters():
                # The published biases of queries and values are zero in effect, and timm's model has none.
                if re.search(r"\.[qv]_proj\.bias$", parameter_name):
                    parameter.zero_()
    other = timm_encoder(model, changes, monkeypatch)
    # In SigLIP 2's NaFlex form the patch embedding is a matrix over (row, column, channel), not a convolution.
    state = convert(dict(ours.model.state_dict()))
    if name == "siglip2":
        weight = state["patch_embed.proj.weight"]
        state["patch_embed.proj.weight"] = weight.unflatten(1, (8, 8, 3)).permute(0, 3, 1, 2).contiguous()
    report = other.model.load_state_dict(state, strict=False)
    assert not report.unexpected_keys
    assert not report.missing_keys
    x_BCHW = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for layer, found, expected in zip(LAYERS, ours(x_BCHW), other(x_BCHW), strict=True):
            error = (found - expected).abs().max() / expected.abs().max()
            assert error <= TOLERANCE, f"layer {layer}: {error}"


def test_prefix_tokens_are_declared_alike() -> None:
    for small, name in (("facebook/dinov3-vitl16-pretrain-lvd1689m", "vit_large_patch16_dinov3"),):
        ours: EncoderInfo = describe_transformers(TransformersConfig(model=small))
        other = describe_timm(TimmConfig(model=name, image_size=224))
        assert (ours.prefix_tokens, ours.depth, ours.width, ours.stride, ours.mean, ours.std, ours.licence) == (
            other.prefix_tokens,
            other.depth,
            other.width,
            other.stride,
            other.mean,
            other.std,
            other.licence,
        )
