"""The lines of a recipe that use a block: where each family stands, with an example config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from fusionkit.plugin import BlockSpec

_PLACES: Mapping[str, tuple[str, ...]] = {
    "encoders": ("streams", "semantic", "encoder"),
    "selectors": ("streams", "semantic", "select"),
    "mixers": ("streams", "semantic", "steps", "mix"),
    "adapters": ("streams", "semantic", "steps", "adapt"),
    "poolers": ("streams", "semantic", "steps", "pool"),
    "connectors": ("fusion", "align"),
    "injectors": ("injectors", "visual"),
    "language_models": ("language_model",),
    "objectives": ("train", "stages", "joint", "objectives", "loss"),
    "box_tokenizers": ("box_tokenizer",),
    "croppers": ("cropper",),
    "datasets": ("train", "data"),
    "metrics": ("evaluate",),
}


def example_fragment(spec: BlockSpec) -> str:
    """The block's first example at its place in a recipe, as YAML: one key a line, the block itself in braces."""
    block = {"type": spec.name, **spec.examples[0]}
    place = _PLACES[spec.family]
    lines = [f"{'  ' * depth}{key}:" for depth, key in enumerate(place)]
    text = flow(block)
    if spec.family == "datasets":
        text = f"[{text}]"
    elif spec.family == "metrics":
        text = f"[{{metric: {text}, data: {{type: synthetic_scenes}}}}]"
    lines[-1] += f" {text}"
    return "\n".join(lines)


def flow(value: Any) -> str:
    """A value as YAML on one line."""
    return yaml.safe_dump(_plain(value), default_flow_style=True, sort_keys=False, width=10**9).strip()


def _plain(value: Any) -> Any:
    """Examples may be read-only mappings and tuples, which YAML's safe writer does not know."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
