"""Plan the streams: encoder facts, selected layers, steps; in an order that serves `{like: STREAM}` widths."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from fusionkit import registry
from fusionkit.errors import PluginError, ShapeError
from fusionkit.geometry import Grid, LayerStackSpec, TokenSpec
from fusionkit.plugin import BlockConfig, BlockPlan, BlockSite, EncoderInfo
from fusionkit.recipe.plan_types import ENCODER, Node, StreamPlan
from fusionkit.recipe.plan_wiring import outputs_of, shapes_of, wire_stream
from fusionkit.recipe.planning import Planning, Shape, likes, make_node, suggestion, torch_free

if TYPE_CHECKING:
    from fusionkit.recipe.schema import Stream

LANGUAGE_MODEL = "language_model"
"""Besides streams, `{like: ...}` may name the language model."""


def plan_streams(planning: Planning, language_model_width: int | None) -> dict[str, StreamPlan]:
    """Plan every stream that can be planned, in the recipe's order."""
    streams = planning.recipe.streams
    planned: dict[str, StreamPlan] = {}
    widths: dict[str, int] = {} if language_model_width is None else {LANGUAGE_MODEL: language_model_width}
    for name in _in_order(planning):
        stream = _plan_stream(planning, name, streams[name], widths)
        if stream is not None:
            planned[name] = stream
            widths[name] = stream.output.width
    return {name: planned[name] for name in streams if name in planned}


def resolve_like(
    planning: Planning, address: str, config: BlockConfig, widths: Mapping[str, int]
) -> tuple[bool, int | None]:
    """(whether the step can be planned, the width that `{like: NAME}` stands for in it, if it says so).

    `widths` has the streams planned so far and the language model. A name that exists but could not be planned has its
    problem already.
    """
    target: int | None = None
    for field, name in likes(config).items():
        if name in widths:
            target = widths[name]
            continue
        known = [*planning.recipe.streams, *([LANGUAGE_MODEL] if planning.recipe.language_model else [])]
        if name not in known:
            planning.fault(f"{address}.{field}", f"no stream is called `{name}`", suggestion(name, known))
        return False, None
    return True, target


def _in_order(planning: Planning) -> list[str]:
    """Streams so that each comes after those whose width it takes; those in a cycle are left out, with a problem."""
    streams = planning.recipe.streams
    wanted: dict[str, dict[str, str]] = {
        name: {
            like: f"streams.{name}.steps.{step}.{field}"
            for step, config in stream.steps.items()
            for field, like in likes(config).items()
            if like in streams
        }
        for name, stream in streams.items()
    }
    order: list[str] = []
    cyclic: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            cycle = (*path[path.index(name) :], name)
            if not cyclic.issuperset(cycle):
                cyclic.update(cycle)
                planning.fault(
                    wanted[path[-1]][name],
                    f"widths go round in a circle: {' -> '.join(cycle)}",
                    "give one of them a number",
                )
            return
        if name in order:
            return
        for other in wanted[name]:
            visit(other, (*path, name))
        order.append(name)

    for name in streams:
        visit(name, ())
    return [name for name in order if name not in cyclic]


def _plan_stream(planning: Planning, name: str, stream: Stream, widths: Mapping[str, int]) -> StreamPlan | None:
    address = f"streams.{name}"
    described = _describe(planning, f"{address}.encoder", stream.encoder)
    if described is None:
        return None
    info, grid = described
    layers = _select(planning, f"{address}.select", stream.select, info)
    if layers is None:
        return None
    stack = LayerStackSpec(layers, grid, info.width)
    encoder = planning.attempt(
        f"{address}.encoder",
        stream.encoder.type,
        lambda: _encoder_node(f"{address}.encoder", stream.encoder, info, stack),
    )
    steps = _plan_steps(planning, name, stream.steps, stack, widths)
    if encoder is None or steps is None:
        return None
    output = steps[-1].output if steps else stack.tokens
    return StreamPlan(name, info, layers, stack, encoder, steps, output)


def _describe(planning: Planning, address: str, config: BlockConfig) -> tuple[EncoderInfo, Grid] | None:
    def describe() -> tuple[EncoderInfo, Grid]:
        spec = registry.spec("encoders", config.type)
        info = spec.describe(config) if spec.describe is not None else None
        if not isinstance(info, EncoderInfo):
            raise PluginError(f"`{config.type}` does not describe itself as an encoder (report it to its author)")
        return info, info.grid

    return planning.attempt(address, config.type, describe)


def _select(planning: Planning, address: str, config: BlockConfig, info: EncoderInfo) -> tuple[int, ...] | None:
    def select() -> tuple[int, ...]:
        layers = tuple(torch_free("selectors", config, address).layers(info))
        if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] > info.depth:
            raise ShapeError(f"expected sorted, unique layers within 0..{info.depth}, got {list(layers)}")
        return layers

    return planning.attempt(address, config.type, select)


def _encoder_node(address: str, config: BlockConfig, info: EncoderInfo, stack: LayerStackSpec) -> Node:
    """The encoder's costs: the pruned model; it writes every selected layer."""
    one = stack.tokens
    params = info.params(stack.layers)
    written = 4 * stack.depth * one.tokens * one.width
    read = 4 * (3 * info.input_size[0] * info.input_size[1] + params)
    planned = BlockPlan(
        MappingProxyType({"main": one}), params, info.flops(stack.layers, stack.grid), read + written, written
    )
    site = BlockSite(address=address, plan=planned, layers=stack.layers, info=info)
    return make_node(config, "encoders", site)


def _plan_steps(
    planning: Planning, stream: str, steps: Mapping[str, BlockConfig], stack: LayerStackSpec, widths: Mapping[str, int]
) -> tuple[Node, ...] | None:
    """The stream's steps; None when one of them cannot be planned."""
    prefix = f"streams.{stream}.steps"
    families = {name: registry.step_spec(config.type).family for name, config in steps.items()}
    if stack.depth > 1 and "mixers" not in families.values():
        planning.fault(
            f"streams.{stream}",
            f"{stack.depth} layers are selected and no mixer makes one of them",
            "add as first step `mix: {type: softmax_sum}`, or read one layer: `select: {type: last}`",
        )
        return None
    sources = wire_stream(planning, stream, steps)
    if sources is None:
        return None
    known: dict[str, TokenSpec] = {ENCODER: stack.tokens}
    nodes: list[Node] = []
    for name, config in steps.items():
        address = f"{prefix}.{name}"
        fits, target = resolve_like(planning, address, config, widths)
        shapes = shapes_of(planning, address, sources[name], known)
        if not fits or shapes is None:
            continue
        inputs: Mapping[str, Shape] = shapes
        if families[name] == "mixers":
            inputs = dict.fromkeys(shapes, stack)
        node = planning.node(address, families[name], config, inputs, sources[name], target)
        if node is not None:
            nodes.append(node)
            known.update(outputs_of(node))
    return tuple(nodes) if len(nodes) == len(steps) else None
