"""From a plan to modules: every block's factory is called with its config and site, and errors name its address."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fusionkit import registry
from fusionkit.errors import BuildError, FusionkitError
from fusionkit.ops.precision import default_dtype
from fusionkit.plugin import BlockConfig, BlockSite
from fusionkit.recipe.plan import Node, Plan


@dataclass(frozen=True, slots=True)
class StreamParts:
    """The modules of one stream."""

    encoder: nn.Module
    steps: dict[str, nn.Module]


@dataclass(frozen=True, slots=True)
class Parts:
    """All modules of a recipe, by the names they have in it."""

    streams: dict[str, StreamParts]
    fusion: dict[str, nn.Module]
    injectors: dict[str, nn.Module]
    language_model: nn.Module | None


def build_parts(plan: Plan, *, pretrained: bool, decoder_dtype: torch.dtype | None = None) -> Parts:
    """Build every block of a plan. With `pretrained` false nothing is read from disk or hub: weights are random.

    The language model, most of the weight, is built in `decoder_dtype` at once, never in fp32 first.
    """
    streams = {
        name: StreamParts(
            _build(plan, stream.encoder, pretrained),
            {node.name: _build(plan, node, pretrained) for node in stream.steps},
        )
        for name, stream in plan.streams.items()
    }
    fusion = {node.name: _build(plan, node, pretrained) for node in plan.fusion}
    injectors = {node.name: _build(plan, node, pretrained) for node in plan.injectors}
    with default_dtype(decoder_dtype or torch.get_default_dtype()):
        decoder = None if plan.language_model_node is None else _build(plan, plan.language_model_node, pretrained)
    return Parts(streams, fusion, injectors, decoder)


def _build(plan: Plan, node: Node, pretrained: bool) -> nn.Module:
    try:
        spec = registry.spec(node.family, node.type)
        module = registry.factory(spec)(node.config if pretrained else without_weights(node.config), node.site)
    except FusionkitError as error:
        raise BuildError(f"{_place(plan, node)}: {error}") from error
    except Exception as error:  # a plugin may raise anything; the reader needs the address and the cause
        raise BuildError(
            f"{_place(plan, node)}: {node.type} failed to build: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(module, nn.Module):
        raise BuildError(
            f"{_place(plan, node)}: the factory of {node.family}/{node.type} returned a {type(module).__name__}, not a module"
        )
    return module


def without_weights(config: BlockConfig) -> BlockConfig:
    """The same block with random weights, for shapes only or when a checkpoint will fill it."""
    # Where the weights come from is a text; other blocks may call numbers so.
    return (
        config.model_copy(update={"weights": "random"}) if isinstance(getattr(config, "weights", None), str) else config
    )


def build_object(family: str, config: BlockConfig, site: BlockSite | None = None) -> Any:
    """Build a block that is not a module: a cropper, box tokenizer, dataset, metric."""
    return registry.factory(registry.spec(family, config.type))(config, site or BlockSite())


def _place(plan: Plan, node: Node) -> str:
    origin = plan.recipe.where(node.address)
    line = f"{origin.source}:{origin.line}: " if origin.line else ""
    return f"{line}{node.address}"
