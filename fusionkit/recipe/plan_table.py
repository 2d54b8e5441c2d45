"""A plan as rows of text and as JSON-able values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fusionkit.geometry import Size, TokenSpec
from fusionkit.plugin import IMAGE_TOKEN, EncoderInfo, LanguageModelInfo, TokenLayout
from fusionkit.recipe.licences import Licence
from fusionkit.recipe.plan_types import Node, Plan

COLUMNS = ("address", "type", "reads", "grid", "tokens", "width", "parameters", "FLOPs", "activations")
NUMBERS = frozenset({"grid", "tokens", "width", "parameters", "FLOPs", "activations"})
"""Columns that are aligned to the right."""


@dataclass(frozen=True, slots=True)
class Picture:
    """What one picture takes: crops, tokens in the sequence, the room it leaves for text, forward FLOPs."""

    size: Size | None
    crops: int
    tokens: int
    visual_tokens: int
    room: int
    flops: int


def picture(plan: Plan, size: Size | None = None) -> Picture:
    """The costs of a picture of `size` pixels, or of the largest there is."""
    layout: TokenLayout = plan.largest_layout if size is None else plan.layout(size)
    return Picture(
        size,
        layout.crops,
        layout.tokens,
        layout.symbols.count(IMAGE_TOKEN),
        plan.recipe.sequence_length - layout.tokens,
        plan.flops(layout.crops, layout.tokens),
    )


def rows(plan: Plan) -> list[tuple[str, ...]]:
    """One row of text per node, under `COLUMNS`. FLOPs and activations are per crop, the decoder's per sequence."""
    return [_row(plan, node) for node in plan.nodes]


def parts(plan: Plan) -> dict[str, int]:
    """Parameters by part of the recipe."""
    return {
        "encoders": sum(stream.encoder.params for stream in plan.streams.values()),
        "steps": sum(node.params for stream in plan.streams.values() for node in stream.steps),
        "fusion": sum(node.params for node in plan.fusion),
        "injectors": sum(node.params for node in plan.injectors),
        "language model": plan.language_model_node.params if plan.language_model_node is not None else 0,
    }


def licences(plan: Plan) -> list[Licence]:
    """The licence of every part that comes with weights of its own."""
    return [
        Licence(node.address, node.site.info.name or node.type, node.site.info.licence)
        for node in plan.nodes
        if node.site.info is not None
    ]


def to_dict(plan: Plan) -> dict[str, Any]:
    """The plan as JSON-able values."""
    info = plan.language_model
    return {
        "name": plan.recipe.name,
        "summary": plan.recipe.summary,
        "nodes": [_node(node) for node in plan.nodes],
        "visual": {"source": plan.visual_source, **_shape(plan.visual)},
        "parameters": {"total": plan.parameters, **{name.replace(" ", "_"): n for name, n in parts(plan).items()}},
        "language_model": None if info is None else _decoder(plan, info),
        "new_tokens": len(plan.new_tokens),
        "sequence_length": plan.recipe.sequence_length,
        "largest_picture": None if plan.layouts is None else picture_dict(picture(plan)),
        "licences": [
            {"address": each.address, "name": each.name, "licence": each.licence, "note": each.note}
            for each in licences(plan)
        ],
    }


def picture_dict(found: Picture) -> dict[str, Any]:
    """A picture's costs as JSON-able values."""
    size = {} if found.size is None else {"size": [found.size.width, found.size.height]}
    counts = {name: getattr(found, name) for name in ("crops", "tokens", "visual_tokens", "room", "flops")}
    return {**size, **counts}


# ------------------------------------------------------------------------------------------------ formatting
def scaled(number: float, unit: str = "") -> str:
    """A number with three digits and a decimal prefix: 1.23 G."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if number < 999.5 or prefix == "P":
            break
        number /= 1000
    digits = f"{number:.3g}" if number < 999.5 else f"{number:.0f}"
    return f"{digits} {prefix}{unit}".rstrip()


def in_bytes(count: float) -> str:
    """A number of bytes with a binary prefix: 1.5 MiB."""
    for prefix in ("", "Ki", "Mi", "Gi", "Ti"):
        if count < 1024 or prefix == "Ti":
            break
        count /= 1024
    return f"{count:.1f} {prefix}B" if prefix else f"{count:.0f} B"


def layer_ranges(layers: Sequence[int]) -> str:
    """Layer numbers, runs written as first-last: 1-4, 8."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def read_by(node: Node) -> str:
    """What a node reads, as text: `semantic`, `query=semantic memory=spatial`, an encoder's `layers 1-12`."""
    if node.site.layers:
        layers = f"layer{'s' if len(node.site.layers) > 1 else ''} {layer_ranges(node.site.layers)}"
        return layers + _resampled(node)
    plain = all(argument in ("input", source.replace(".", "_")) for argument, source in node.sources.items())
    shown: Iterable[str] = node.sources.values()
    if not plain:
        shown = (f"{argument}={source}" for argument, source in node.sources.items())
    return " ".join(shown)


def _resampled(node: Node) -> str:
    """The strides that an encoder computes the layers at, if it resamples them: ` (strides 4, 8 -> 16)`."""
    info = node.site.info
    if not isinstance(info, EncoderInfo) or not info.layer_strides:
        return ""
    strides = dict.fromkeys(info.layer_strides[layer] for layer in node.site.layers)
    one, many = _stride(info.stride), [_stride(stride) for stride in strides]
    return "" if many == [one] else f" (stride{'s' if len(many) > 1 else ''} {', '.join(many)} -> {one})"


def _stride(stride: tuple[int, int]) -> str:
    return str(stride[0]) if stride[0] == stride[1] else f"{stride[0]}x{stride[1]}"


def grid_text(spec: TokenSpec) -> str:
    """A grid, and how many of them: 2x24x24 for two grids of 24x24."""
    return f"{spec.copies}x{spec.grid}" if spec.copies > 1 else str(spec.grid)


def _row(plan: Plan, node: Node) -> tuple[str, ...]:
    if node is plan.language_model_node and plan.language_model is not None:
        shape = ("", "", str(plan.language_model.width))
    else:
        shape = (grid_text(node.output), str(node.output.tokens), str(node.output.width))
    flops = scaled(node.flops) if node.flops else "0"
    return (
        node.address,
        node.type,
        read_by(node),
        *shape,
        f"{node.params:,}",
        flops,
        in_bytes(node.plan.activation_bytes),
    )


def _node(node: Node) -> dict[str, Any]:
    name, version = node.distribution
    made: dict[str, Any] = {
        "address": node.address,
        "family": node.family,
        "type": node.type,
        "distribution": {"name": name, "version": version},
        "sources": dict(node.sources),
        "outputs": {name: _shape(spec) for name, spec in node.plan.outputs.items()},
        "parameters": node.params,
        "flops": node.flops,
        "min_bytes": node.plan.min_bytes,
        "activation_bytes": node.plan.activation_bytes,
    }
    if isinstance(node.site.info, EncoderInfo):
        made["layers"] = list(node.site.layers)
        made["depth"] = node.site.info.depth
        made["input_size"] = list(node.site.info.input_size)
        if strides := node.site.info.layer_strides:
            made["layer_strides"] = [list(strides[layer]) for layer in node.site.layers]
    return made


def _shape(spec: TokenSpec) -> dict[str, Any]:
    return {
        "grid": [spec.grid.height, spec.grid.width],
        "copies": spec.copies,
        "tokens": spec.tokens,
        "width": spec.width,
    }


def _decoder(plan: Plan, info: LanguageModelInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "width": info.width,
        "depth": info.depth,
        "vocab_size": info.vocab_size,
        "tokenizer_size": info.tokenizer_size,
        "embedding_rows": plan.embedding_rows,
        "context_length": info.context_length,
        "tied": info.tied,
    }
