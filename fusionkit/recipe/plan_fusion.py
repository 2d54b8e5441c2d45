"""Plan what follows the streams: the fusion steps, the injectors and the language model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fusionkit import registry
from fusionkit.errors import PluginError
from fusionkit.geometry import TokenSpec
from fusionkit.plugin import BlockPlan, BlockSite, LanguageModelInfo, LayerInjectorConfig
from fusionkit.recipe.plan_streams import resolve_like
from fusionkit.recipe.plan_types import Node, StreamPlan
from fusionkit.recipe.plan_wiring import FusionWiring, acts_inside, outputs_of, shapes_of, unused_name
from fusionkit.recipe.planning import Planning, likes, make_node

PLACING = ("replace", "add")
"""Injectors that write the vectors of a picture at its `<image>` tokens; a second one would write over the first."""


@dataclass(frozen=True, slots=True)
class FusionPlan:
    """The planned fusion steps and injectors, and what the injectors get."""

    steps: tuple[Node, ...]
    injectors: tuple[Node, ...]
    visual: TokenSpec


def describe_language_model(planning: Planning) -> LanguageModelInfo | None:
    """The facts of the recipe's language model; None when there is none, or when it has a problem."""
    config = planning.recipe.language_model
    if config is None:
        return None

    def describe() -> LanguageModelInfo:
        spec = registry.spec("language_models", config.type)
        info = spec.describe(config) if spec.describe is not None else None
        if not isinstance(info, LanguageModelInfo):
            raise PluginError(f"`{config.type}` does not describe itself as a language model (report it to its author)")
        return info

    return planning.attempt("language_model", config.type, describe)


def plan_fusion(
    planning: Planning, wiring: FusionWiring, streams: Mapping[str, StreamPlan], info: LanguageModelInfo | None
) -> FusionPlan | None:
    """Plan the fusion steps and the injectors; None when one cannot be planned."""
    recipe = planning.recipe
    known = {name: stream.output for name, stream in streams.items()}
    widths = {name: spec.width for name, spec in known.items()}
    if info is not None:
        widths["language_model"] = info.width
    steps: list[Node] = []
    for name, config in recipe.fusion.items():
        address = f"fusion.{name}"
        family = registry.step_spec(config.type).family
        if family == "mixers":
            planning.fault(address, "a mixer reads an encoder's layers", "make it the first step of a stream")
            continue
        fits, target = resolve_like(planning, address, config, widths)
        if target is None and info is not None and name == wiring.visual.partition(".")[0] and not likes(config):
            target = info.width
        inputs = shapes_of(planning, address, wiring.steps[name], known)
        if not fits or inputs is None:
            continue
        node = planning.node(address, family, config, inputs, wiring.steps[name], target)
        if node is not None:
            steps.append(node)
            known.update(outputs_of(node))
    visual = shapes_of(planning, _visual_address(planning, wiring), {"input": wiring.visual}, known)
    if visual is None or (info is not None and not _width_fits(planning, wiring, visual["input"], info)):
        return None
    injectors = _plan_injectors(planning, wiring, known, visual["input"], info)
    complete = len(steps) == len(recipe.fusion) and len(injectors) == len(recipe.injectors)
    return FusionPlan(tuple(steps), injectors, visual["input"]) if complete else None


def check_injectors(planning: Planning) -> None:
    """A language model needs injectors and the other way round; exactly one of them writes the `<image>` positions."""
    recipe = planning.recipe
    if recipe.language_model is not None and not recipe.injectors:
        planning.fault(
            "language_model", "nothing brings the picture to it", "add `injectors: {visual: {type: replace}}`"
        )
    if recipe.injectors and recipe.language_model is None:
        planning.fault("injectors", "there is no language model to inject into", "remove them, or add `language_model`")
    if recipe.injectors and all(map(acts_inside, recipe.injectors.values())):
        planning.fault("injectors", "none of them writes the <image> tokens", "add `visual: {type: replace}`")
    placing = [name for name, config in recipe.injectors.items() if config.type in PLACING]
    for name in placing[1:]:
        planning.fault(
            f"injectors.{name}", f"`{placing[0]}` already writes at the <image> tokens", "keep one of replace and add"
        )


def language_model_node(planning: Planning, info: LanguageModelInfo | None, rows: int, tokens: int) -> Node | None:
    """The language model as a node; its FLOPs are for one sequence of `tokens`."""
    config = planning.recipe.language_model
    if config is None or info is None:
        return None

    def node() -> Node:
        params = info.count_params(rows)
        planned = BlockPlan({}, params, info.count_flops(tokens) if tokens else 0, 4 * params, 4 * tokens * info.width)
        site = BlockSite(address="language_model", plan=planned, info=info, rows=rows)
        return make_node(config, "language_models", site)

    return planning.attempt("language_model", config.type, node)


def _plan_injectors(
    planning: Planning,
    wiring: FusionWiring,
    known: Mapping[str, TokenSpec],
    visual: TokenSpec,
    info: LanguageModelInfo | None,
) -> tuple[Node, ...]:
    target = None if info is None else info.width
    planned: list[Node] = []
    for name, config in planning.recipe.injectors.items():
        address, sources = f"injectors.{name}", wiring.injectors[name]
        inputs = shapes_of(planning, address, sources, known)
        if isinstance(config, LayerInjectorConfig):
            if info is not None and config.layers[-1] > info.depth:
                message = f"block {config.layers[-1]} is outside the language model, which has blocks 1 to {info.depth}"
                planning.fault(f"{address}.layers", message, f"use at most {info.depth}")
                continue
            inputs = None if inputs is None else {**inputs, "visual": visual}
        node = None if inputs is None else planning.node(address, "injectors", config, inputs, sources, target)
        if node is not None:
            planned.append(node)
    return tuple(planned)


def _width_fits(planning: Planning, wiring: FusionWiring, visual: TokenSpec, info: LanguageModelInfo) -> bool:
    """Whether the last tokens have the language model's width; if not, the fix is a projector or a number."""
    if visual.width == info.width:
        return True
    recipe = planning.recipe
    last = recipe.fusion.get(wiring.visual)
    address = _visual_address(planning, wiring)
    hint = f"add as last step under `fusion`: `{unused_name('project', [*recipe.streams, *recipe.fusion])}: {{type: linear}}`"
    if last is not None and getattr(last, "width", None) is not None:
        address, hint = f"{address}.width", f"set `width: {info.width}`, or leave it out"
    planning.fault(address, f"gives tokens of width {visual.width}, the language model takes {info.width}", hint)
    return False


def _visual_address(planning: Planning, wiring: FusionWiring) -> str:
    name = wiring.visual.partition(".")[0]
    return f"fusion.{name}" if name in planning.recipe.fusion else f"streams.{name}"
