"""What timm itself says of a model: the facts of `Architecture`, measured on the meta device.

Parameters are counted and FLOPs measured on models of zero and one block at two grids, which determines every
coefficient of `Costs`; nothing is a formula of a particular architecture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fusionkit.blocks.encoders.counts import Architecture, Level
from fusionkit.errors import BuildError


@dataclass(frozen=True, slots=True)
class Blocks:
    """Where the blocks of one stride are: the list that holds them, its owner and name, and the stages around it."""

    owner: nn.Module
    name: str
    stride: tuple[int, int]
    width: int
    stage: int | None = None

    @property
    def items(self) -> Sequence[nn.Module]:
        return cast(Sequence[nn.Module], getattr(self.owner, self.name))


def find_blocks(model: nn.Module, name: str) -> tuple[Blocks, ...]:
    """The block lists of a timm model, one per stride.

    Raises BuildError for a model that has no such list (its layers do not lie on one grid, or it is a plain CNN).
    """
    features: list[dict[str, Any]] = list(getattr(model, "feature_info", None) or [])
    blocks, stages = getattr(model, "blocks", None), getattr(model, "stages", None)
    if _is_list(blocks) and features and len({feature["reduction"] for feature in features}) == 1:
        height, width = _pair(cast(Any, model).patch_embed.patch_size)
        return (Blocks(model, "blocks", (height, width), int(cast(Any, model).embed_dim)),)
    stages = list(cast(Sequence[nn.Module], stages)) if _is_list(stages) else []
    if stages and len(features) == len(stages) and all(_is_list(getattr(s, "blocks", None)) for s in stages):
        return tuple(
            Blocks(stage, "blocks", _pair(feature["reduction"]), int(feature["num_chs"]), index)
            for index, (stage, feature) in enumerate(zip(stages, features, strict=True))
        )
    raise BuildError(
        f"timm model '{name}' ({type(model).__name__}) has no list of blocks on one grid per stride; "
        "expected `blocks` (a ViT) or `stages` of `blocks` (ConvNeXt)"
    )


def prune(model: nn.Module, blocks: Blocks, deepest: int) -> None:
    """Drop what layer `deepest` does not need: later blocks and stages, the final norm, the pooling and the head."""
    index = blocks.stage if blocks.stage is not None else max(deepest, 1) - 1
    cast(Any, model).prune_intermediate_layers([index], prune_norm=True, prune_head=True)
    setattr(blocks.owner, blocks.name, blocks.items[:deepest])


def facts_of(name: str) -> Architecture:
    """The facts of a timm model, from the library alone; no weights are loaded.

    Raises BuildError when timm does not know the name or its layers do not lie on one grid per stride.
    """
    model = create_on_meta(name)
    config = cast(Any, model).pretrained_cfg
    return Architecture(
        hub_id=config.get("hf_hub_id") or "",
        licence=config.get("license") or "unknown",
        input_size=tuple(config["input_size"][1:]),
        fixed_size=bool(config.get("fixed_input_size")),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        prefix_tokens=int(getattr(model, "num_prefix_tokens", 0)),
        levels=tuple(_level(name, place, blocks) for place, blocks in enumerate(find_blocks(model, name))),
    )


def ask(name: str) -> dict[str, Any]:
    """`facts_of` as the table has it."""
    return facts_of(name).model_dump(mode="json", exclude_none=True)


def create_on_meta(name: str, size: tuple[int, int] | None = None) -> nn.Module:
    """The unpruned model without storage, for an input size if it is built for one; raises BuildError if unknown."""
    facts = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if facts is None:
        raise BuildError(f"timm {timm.__version__} has no model '{name}' (or knows no facts of it)")
    options: dict[str, Any] = {} if size is None or not facts.fixed_input_size else {"img_size": size}
    with torch.device("meta"):
        model: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, **options)
    return model.eval()


def _level(name: str, place: int, blocks: Blocks) -> Level:
    """Solve for the coefficients of one level from what its first 0, 1 and all blocks cost at two grids."""
    depth = len(blocks.items)
    heads, mlp = _heads(blocks.items[0]), _mlp(blocks.items[0])
    full, one, empty = _measure(name, place, blocks.stride, (4, 4), (depth, 1, 0))
    far_one, far_empty = _measure(name, place, blocks.stride, (8, 6), (1, 0))
    position, uneven = divmod(far_empty.params - empty.params, far_empty.patches - empty.patches)
    block_params = one.params - empty.params
    cost, far_cost = one.flops - empty.flops, far_one.flops - far_empty.flops
    # cost = T * block + T² * attention at two values of T.
    tokens, far_tokens = one.tokens, far_one.tokens
    attention, rest = divmod(tokens * far_cost - far_tokens * cost, tokens * far_tokens * (far_tokens - tokens))
    if uneven or rest or full.params - empty.params != depth * block_params or full.flops - empty.flops != depth * cost:
        raise BuildError(f"timm model '{name}': its blocks at stride {blocks.stride[0]} do not all cost the same")
    return Level(
        depth=depth,
        width=blocks.width,
        stride=blocks.stride,
        heads=heads,
        mlp=mlp,
        stem_params=empty.params - position * empty.patches,
        position_params=position,
        block_params=block_params,
        stem_flops=_linear(empty, far_empty),
        block_flops=cost // tokens - tokens * attention,
        attention_flops=attention,
    )


@dataclass(frozen=True, slots=True)
class _Measured:
    params: int
    flops: int
    patches: int
    tokens: int


def _measure(
    name: str, place: int, stride: tuple[int, int], grid: tuple[int, int], depths: Sequence[int]
) -> list[_Measured]:
    """What the model costs on a grid when pruned to each of `depths`, which must fall."""
    size = (grid[0] * stride[0], grid[1] * stride[1])
    model = create_on_meta(name, size)
    blocks = find_blocks(model, name)[place]
    x_BCHW = torch.empty(1, 3, *size, device="meta")
    patches = grid[0] * grid[1]
    tokens = patches + int(getattr(model, "num_prefix_tokens", 0))
    measured = []
    for deepest in depths:
        prune(model, blocks, deepest)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            cast(Any, model).forward_features(x_BCHW)
        params = sum(parameter.numel() for parameter in model.parameters())
        measured.append(_Measured(params, counter.get_total_flops(), patches, tokens))
    return measured


def _linear(few: _Measured, many: _Measured) -> int:
    slope, rest = divmod(many.flops, many.patches)
    if rest or slope * few.patches != few.flops:
        raise BuildError(
            f"the stem costs {few.flops} and {many.flops} FLOPs for {few.patches} and {many.patches} tokens: not linear"
        )
    return slope


def _is_list(value: object) -> bool:
    return isinstance(value, nn.Sequential | nn.ModuleList)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _heads(block: nn.Module) -> int | None:
    heads = getattr(getattr(block, "attn", None), "num_heads", None)
    return heads if isinstance(heads, int) else None


def _mlp(block: nn.Module) -> int | None:
    first = getattr(getattr(block, "mlp", None), "fc1", None) or getattr(getattr(block, "mlp", None), "fc1_g", None)
    return int(first.out_features) if isinstance(first, nn.Linear) else None
