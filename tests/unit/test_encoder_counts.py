"""What encoders plan is what they are: parameters exactly, FLOPs within 1 % of those measured."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fusionkit.blocks.encoders import specs
from fusionkit.errors import ShapeError
from fusionkit.geometry import Grid
from fusionkit.plugin import BlockSite, BlockSpec, EncoderInfo

CASES = [
    pytest.param(spec, example, id=f"{spec.name}-{index}")
    for spec in (specs.SMALL_VIT, specs.SMALL_CONV, specs.TIMM)
    for index, example in enumerate(spec.examples)
]


def make(
    spec: BlockSpec, options: Mapping[str, Any], layers: tuple[int, ...] | None = None
) -> tuple[nn.Module, EncoderInfo]:
    config = spec.config(**options)
    info = spec.describe(config)
    assert isinstance(info, EncoderInfo)
    module, name = spec.factory.split(":")
    factory = getattr(import_module(module), name)
    return factory(config, BlockSite(info=info, layers=layers or tuple(range(info.depth + 1)))).eval(), info


def numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def measured_flops(encoder: nn.Module, info: EncoderInfo, device: str = "cpu") -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(torch.zeros(1, 3, *info.input_size, device=device))
    return counter.get_total_flops()


@pytest.mark.parametrize(("spec", "example"), CASES)
def test_every_depth_costs_what_it_plans(spec: BlockSpec, example: Mapping[str, Any]) -> None:
    depth = make(spec, example)[1].depth
    for deepest in range(depth + 1):
        encoder, info = make(spec, example, layers=(deepest,))
        assert info.params((deepest,)) == numbers(encoder)
        assert info.flops((deepest,)) == pytest.approx(measured_flops(encoder, info), rel=0.01)


@pytest.mark.parametrize(
    ("model", "options", "params"),
    [
        ("vit_so400m_patch16_siglip_384.v2_webli", {}, 413_016_048),
        ("vit_large_patch16_dinov3.lvd1689m", {"image_size": 224}, 303_077_376),
        ("vit_large_patch14_clip_336.openai", {}, None),
        ("vit_base_patch16_siglip_224.v2_webli", {"image_size": (320, 160)}, None),
        ("vit_small_patch14_dinov2.lvd142m", {"image_size": 224}, None),
        ("convnext_tiny.in12k_ft_in1k", {"stride": 16}, None),
    ],
)
def test_real_models_cost_what_they_plan(model: str, options: dict[str, Any], params: int | None) -> None:
    with torch.device("meta"):
        encoder, info = make(specs.TIMM, {"model": model, **options})
    assert info.params((info.depth,)) == numbers(encoder) == (params or numbers(encoder))
    assert info.flops((info.depth,)) == pytest.approx(measured_flops(encoder, info, "meta"), rel=0.01)


def test_flops_follow_the_grid() -> None:
    info = specs.describe_small_vit(specs.SmallVitConfig())
    assert info.flops((2,), Grid(1, 1)) < info.flops((2,), Grid(2, 2)) < info.flops((2,))


def test_a_layer_beyond_the_depth_has_no_cost() -> None:
    info = specs.describe_small_vit(specs.SmallVitConfig())
    with pytest.raises(ShapeError, match=r"layer 3 is outside the encoder's layers 0\.\.2"):
        info.params((3,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 5}, "5 heads do not divide the width 64"),
        ({"image_size": 50}, r"image 50x50 is not a multiple of the patch of 6 px \(use 48x48\)"),
        ({"image_size": (48, 4)}, r"image 48x4 is not a multiple of the patch of 6 px \(use 48x6\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ShapeError, match=message) as caught:
        specs.describe_small_vit(specs.SmallVitConfig(**options))
    assert caught.value.field in options


def test_small_conv_wants_one_stride_per_width() -> None:
    with pytest.raises(ShapeError, match="2 strides for 3 widths"):
        specs.describe_small_conv(specs.SmallConvConfig(strides=(2, 2)))
