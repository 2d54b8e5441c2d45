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
        levels=tuple(_level(name, place) for place in range(len(find_blocks(model, name)))),
    )


def ask(name: str) -> dict[str, Any]:
    """`facts_of` as the table has it."""
    return facts_of(name).model_dump(mode="json", exclude_none=True)


def create_on_meta(name: str, size: tuple[int, int] | None = None) -> nn.Module:
    options: dict[str, Any] = {} if size is None else {"img_size": size}
    try:
        with torch.device("meta"):
            model: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, **options)
            return model
    except RuntimeError as error:
        raise BuildError(f"timm {timm.__version__} cannot create '{name}': {error}") from error


def _level(name: str, place: int) -> Level:
    """Solve for the coefficients of one level from three small builds."""
    blocks = find_blocks(create_on_meta(name), name)[place]
    depth = len(blocks.items)
    few, many = (4, 4), (8, 6)
    empty = _measure(name, place, few, 0)
    wide = _measure(name, place, many, 0)
    one = _measure(name, place, few, 1)
    far = _measure(name, place, many, 1)
    full = _measure(name, place, few, depth)
    position, uneven = divmod(wide.params - empty.params, wide.tokens - empty.tokens)
    per_token = _linear(empty, wide)
    block_params = one.params - empty.params
    tokens_few, tokens_many = few[0] * few[1] + one.prefix, many[0] * many[1] + one.prefix
    cost_few, cost_many = one.flops - empty.flops, far.flops - wide.flops
    # cost = T * block + T² * attention at two values of T.
    determinant = tokens_few * tokens_many * (tokens_many - tokens_few)
    attention, rest = divmod(tokens_few * cost_many - tokens_many * cost_few, determinant)
    block = cost_few // tokens_few - tokens_few * attention
    level = Level(
        depth=depth,
        width=blocks.width,
        stride=blocks.stride,
        heads=_heads(blocks.items[0]),
        mlp=_mlp(blocks.items[0]),
        stem_params=empty.params - position * empty.tokens,
        position_params=position,
        block_params=block_params,
        stem_flops=per_token,
        block_flops=block,
        attention_flops=attention,
    )
    if (
        uneven
        or rest
        or full.params - empty.params != depth * block_params
        or full.flops - empty.flops != depth * cost_few
    ):
        raise BuildError(f"timm model '{name}': its blocks at stride {blocks.stride[0]} do not all cost the same")
    return level


@dataclass(frozen=True, slots=True)
class _Measured:
    params: int
    flops: int
    tokens: int
    prefix: int


def _measure(name: str, place: int, grid: tuple[int, int], deepest: int) -> _Measured:
    probe = create_on_meta(name)
    stride = find_blocks(probe, name)[place].stride
    size = (grid[0] * stride[0], grid[1] * stride[1])
    model = create_on_meta(name, size) if cast(Any, probe).pretrained_cfg.get("fixed_input_size") else probe
    prune(model, find_blocks(model, name)[place], deepest)
    model.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        cast(Any, model).forward_features(torch.empty(1, 3, *size, device="meta"))
    params = sum(parameter.numel() for parameter in model.parameters())
    return _Measured(params, counter.get_total_flops(), grid[0] * grid[1], int(getattr(model, "num_prefix_tokens", 0)))


def _linear(few: _Measured, many: _Measured) -> int:
    slope, rest = divmod(many.flops, many.tokens)
    if rest or slope * few.tokens != few.flops:
        raise BuildError(
            f"the stem costs {few.flops} and {many.flops} FLOPs for {few.tokens} and {many.tokens} tokens: not linear"
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
