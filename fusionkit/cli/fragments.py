"""How a block is used: the lines of a recipe at its place, and the call that makes it a module."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

from fusionkit.geometry import Grid, LayerStackSpec, TokenSpec
from fusionkit.plugin import STEP_FAMILIES, BlockSpec, input_fields, input_names

STACK, TOKENS = LayerStackSpec((1, 2, 3), Grid(16, 16), 384), TokenSpec(Grid(16, 16), 384)
"""What examples in Python read: a layer stack for mixers, tokens for the others."""

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


def python_fragment(spec: BlockSpec) -> str:
    """A call of `fusionkit.create` for the block's first example, or nothing where such a call cannot be made up."""
    if spec.plan is None or spec.family not in STEP_FAMILIES:
        return ""
    config = spec.config.model_validate_json(json.dumps(_plain({"type": spec.name, **spec.examples[0]})))
    shape = STACK if spec.family == "mixers" else TOKENS
    names = list(input_names(config))
    inputs = dict.fromkeys(names or ["input"], shape)
    try:
        spec.plan(config, inputs, None)
    except Exception:  # the planner of a plugin may raise anything; doctor looks into it, show explains the rest
        return ""
    kind = type(shape).__name__
    text = "LayerStackSpec((1, 2, 3), Grid(16, 16), 384)" if shape is STACK else "TokenSpec(Grid(16, 16), 384)"
    given = "{" + ", ".join(f'"{name}": shape' for name in names) + "}" if names else "shape"
    read = set(input_fields(spec.config))
    options = "".join(f", {key}={_plain(value)!r}" for key, value in spec.examples[0].items() if key not in read)
    return (
        "from fusionkit import create\n"
        f"from fusionkit.plugin import Grid, {kind}\n"
        f"shape = {text}\n"
        f'module = create("{spec.family}/{spec.name}", {given}{options})'
    )


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
