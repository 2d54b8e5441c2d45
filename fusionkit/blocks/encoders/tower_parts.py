"""The parts of a transformers vision tower: its blocks, what stands after them, and buffers that are never saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fusionkit.blocks.encoders.towers import Tower
from fusionkit.errors import BuildError

CLASSES: Mapping[str, str] = MappingProxyType(
    {
        "siglip_vision_model": "SiglipVisionModel",
        "siglip2_vision_model": "Siglip2VisionModel",
        "clip_vision_model": "CLIPVisionModel",
        "dinov2": "Dinov2Model",
        "dinov2_with_registers": "Dinov2WithRegistersModel",
        "dinov3_vit": "DINOv3ViTModel",
        "vit": "ViTModel",
    }
)
"""The class of transformers for each model type."""

_AFTER: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "siglip_vision_model": ("post_layernorm", "head"),
        "siglip2_vision_model": ("post_layernorm", "head"),
        "clip_vision_model": ("post_layernorm",),
        "dinov2": ("layernorm",),
        "dinov2_with_registers": ("layernorm",),
        "dinov3_vit": ("norm",),
        "vit": ("layernorm", "pooler"),
    }
)
"""What stands after the last block: the final norm, and the head or pooler."""


class _Pass(nn.Module):
    """In the place of a module that was removed: hands on its first argument."""

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        return x


def find_blocks(model: PreTrainedModel, tower: Tower) -> nn.ModuleList:
    """The list of the tower's blocks. Raises BuildError when the library's model has none, or several."""
    owner, name = _blocks_place(model, tower)
    return cast(nn.ModuleList, getattr(owner, name))


def prune(model: PreTrainedModel, tower: Tower, deepest: int) -> None:
    """Drop what layer `deepest` does not need: later blocks, the final norm, the head, and mask tokens of the training."""
    owner, name = _blocks_place(model, tower)
    blocks = cast(nn.ModuleList, getattr(owner, name))
    inside = {id(part) for block in blocks for part in block.modules()}
    setattr(owner, name, blocks[:deepest])
    for module in [module for module in model.modules() if id(module) not in inside]:
        for child in _AFTER[tower.model_type]:
            if getattr(module, child, None) is not None:
                setattr(module, child, _Pass())
        if getattr(module, "mask_token", None) is not None:
            cast(Any, module).mask_token = None


def transient_buffers(model: PreTrainedModel) -> dict[str, Tensor]:
    """The values of the buffers that no checkpoint holds, from fresh modules on the CPU; for a model on meta."""
    found: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        for path, module in model.named_modules():
            names = module._non_persistent_buffers_set
            if names:
                fresh = cast(Any, type(module))(model.config)
                found.update({f"{path}.{name}": fresh.get_buffer(name) for name in names})
    return found


def _blocks_place(model: PreTrainedModel, tower: Tower) -> tuple[nn.Module, str]:
    places = list(_block_lists(model))
    if len(places) != 1:
        raise BuildError(
            f"{type(model).__name__} ({tower.model_type}) has {len(places)} lists of blocks; expected one named `layer` "
            "or `layers`"
        )
    return places[0]


def _block_lists(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for module in model.modules():
        for name in ("layer", "layers"):
            if isinstance(getattr(module, name, None), nn.ModuleList):
                yield module, name
