"""What a CUDA graph cannot hold: no block of a vision side may wait for the device, or copy to it from the CPU.

The device is stood in for by `meta`: nothing of it can be read, and a copy from the CPU to it is seen. The first call
may do what it likes, as the warm-up before a capture.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fusionkit import registry
from fusionkit.bench.case import Whole
from fusionkit.bench.cases import case_of, cases_from_recipe, find_block
from fusionkit.bench.shape import Shape
from fusionkit.bench.subject import build_awake, call, make_arguments
from fusionkit.blocks.encoders.specs import TimmConfig, describe_timm
from fusionkit.blocks.encoders.timm_encoder import TimmEncoder
from fusionkit.geometry import Grid
from fusionkit.model.cuda_graph import CudaCapture
from fusionkit.plugin import BlockSite
from fusionkit.recipe import load_recipe

META = torch.device("meta")
SHAPE = Shape(layers=2, grid=Grid(4, 4), width=16, memory_grid=Grid(4, 4))
DINOV3 = "vit_small_patch16_dinov3.lvd1689m"


class Faults(TorchDispatchMode):
    """Names the operators that a capture would refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        both = {tensor.device.type for tensor in (*given, *tree_leaves(out)) if isinstance(tensor, Tensor)}
        name = func.overloadpacket.__name__
        on_device = "meta" in both
        copies = name in ("copy_", "_to_copy") and len(both) > 1
        made_of_numbers = name == "lift_fresh" and on_device
        indices = [index for index in given[1:] if index.dtype == torch.bool or index.device != given[0].device]
        if copies or made_of_numbers or (name in ("index", "index_put", "index_put_") and on_device and indices):
            self.found.append(str(func))
        return out


def faults(module: nn.Module, arguments: Any) -> list[str]:
    """Of the second call, in eval mode without grad. What the device would have to tell raises by itself."""
    module.eval()
    with torch.no_grad():
        call(module, arguments)
        with Faults() as seen:
            call(module, arguments)
    return seen.found


@pytest.mark.parametrize(
    "fault",
    [
        lambda x: x + torch.arange(3.0).to(x.device),
        lambda x: x * torch.tensor([1.0, 2.0, 3.0], device=x.device),
        lambda x: x[:, [2, 0, 1]],
        lambda x: x[:, torch.tensor([True, False, True])],
    ],
)
def test_faults_are_seen(fault: Any) -> None:
    class Block(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = fault(x)
            return result

    assert faults(Block(), {"input": torch.zeros(2, 3, device=META)})


@pytest.mark.parametrize(
    "address",
    [
        f"{family}/{name}"
        for family in ("encoders", "mixers", "adapters", "poolers", "connectors")
        for name in registry.names(family)
        if name != "timm" and "." not in name
    ],
)
def test_no_block_of_a_vision_side_waits_for_the_device_or_copies_to_it(address: str) -> None:
    case = case_of(find_block(address), {}, SHAPE)
    with META:
        module = build_awake(case)
    assert faults(module, make_arguments(case, torch.float32, META)) == []


@pytest.mark.parametrize("name", [DINOV3, "vit_base_patch16_siglip_224.v2_webli"])
def test_encoders_of_timm_keep_what_they_lay_out_on_the_cpu(name: str) -> None:
    config = TimmConfig(model=name, weights="random", image_size=32)
    with META:
        encoder = TimmEncoder(config, BlockSite(info=describe_timm(config), layers=(1, 2)))
    assert faults(_Layers(encoder), {"input": torch.zeros(2, 3, 32, 32, device=META)}) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", [DINOV3, "vit_base_patch16_siglip_224.v2_webli"])
def test_a_device_captures_encoders_of_timm(name: str) -> None:
    config = TimmConfig(model=name, weights="random", image_size=32)
    encoder = TimmEncoder(config, BlockSite(info=describe_timm(config), layers=(1, 2)))
    layers, x_BCHW = (
        _Layers(encoder).eval().to("cuda", torch.bfloat16),
        torch.zeros(2, 3, 32, 32).to("cuda", torch.bfloat16),
    )
    with torch.no_grad():
        held, replay = CudaCapture()(lambda: layers(x_BCHW), x_BCHW.device)
        x_BCHW.normal_()
        replay()
        for found, expected in zip(held.values(), layers(x_BCHW).values(), strict=True):
            torch.testing.assert_close(found, expected)


class _Layers(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x_BCHW: Tensor) -> dict[str, Tensor]:
        return {str(layer): x_BND for layer, x_BND in enumerate(self.encoder(x_BCHW))}


@pytest.mark.parametrize("name", ["come_vl", "come_vl_released"])
def test_no_whole_vision_side_does(name: str) -> None:
    (case,) = cases_from_recipe(load_recipe(f"builtin:{name}"), 2, ["vision"])[0]
    assert isinstance(case, Whole)
    with META:
        module = build_awake(case)
    assert faults(module, make_arguments(case, torch.float32, META)) == []
