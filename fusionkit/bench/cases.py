"""Cases from names on the command line, or from the plan of a recipe. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from fusionkit import discovery, registry
from fusionkit.bench.case import HOST_FAMILIES, VISION, AnyCase, Case, LeftOut, Whole
from fusionkit.bench.shape import Shape
from fusionkit.errors import FusionkitError, ShapeError, UsageError
from fusionkit.geometry import LayerStackSpec, TokenSpec
from fusionkit.plugin import FAMILIES, STEP_FAMILIES, BlockConfig, BlockSite, BlockSpec, EncoderInfo, input_names
from fusionkit.recipe import Recipe
from fusionkit.recipe.plan import Node, Plan, plan

Inputs = Mapping[str, TokenSpec | LayerStackSpec]
_PLURALS = {family.singular: name for name, family in FAMILIES.items()}


def cases_from_names(
    names: Sequence[str], shape: Shape, options: Mapping[str, Any] | None = None
) -> tuple[list[Case], list[LeftOut]]:
    """A case for every block named; a family's name stands for all its blocks, of which some may not fit the shape.

    Raises: UsageError, UnknownBlockError, ShapeError (a block named by itself refuses the shape).
    """
    cases, left_out = [], []
    for name in names:
        family = _PLURALS.get(name, name)
        whole = family in FAMILIES
        for address in [f"{family}/{block}" for block in registry.names(family)] if whole else [name]:
            try:
                cases.append(case_of(find_block(address), options or {}, shape))
            except FusionkitError as error:
                if not whole:
                    raise
                left_out.append(LeftOut(address, address, str(error)))
    return cases, left_out


def case_of(spec: BlockSpec, options: Mapping[str, Any], shape: Shape) -> Case:
    """A block with the first of its example configs, `options` changed, on the shapes asked for."""
    config = configure(spec, options)
    if spec.family in STEP_FAMILIES:
        inputs = shape.inputs(spec.family, list(input_names(config)))
        return replace(make_case(spec, config, inputs), crops=shape.crops)
    site, text = BlockSite(address=spec.address), shape.text
    if spec.describe is not None:
        info = spec.describe(config)
        if isinstance(info, EncoderInfo):
            layers = tuple(range(info.depth - min(shape.layers, info.depth) + 1, info.depth + 1))
            site, text = replace(site, info=info, layers=layers), 0
        else:
            site = replace(site, info=info, rows=info.embedding_rows(0))
    elif spec.family == "injectors":
        tokens = TokenSpec(shape.grid, shape.width)
        planned = None if spec.plan is None else spec.plan(config, {"input": tokens}, shape.width)
        site = replace(site, inputs=MappingProxyType({"input": tokens}), plan=planned)
    elif spec.family == "objectives":
        read = dict.fromkeys(input_names(config).values() or ["semantic"], TokenSpec(shape.grid, shape.width))
        site = replace(site, inputs=MappingProxyType(read), coordinate_ids=tuple(range(100, 200)))
    return Case(spec.address, spec, config, site, shape.crops, 0 if spec.family in HOST_FAMILIES else text)


def cases_from_recipe(recipe: Recipe, crops: int = 1, only: Sequence[str] = ()) -> tuple[list[AnyCase], list[LeftOut]]:
    """A case for every block of a recipe, on the shapes of its plan, and for its whole vision side.

    `only` keeps the blocks of these addresses, types or `family/type`s; `vision` and `streams.NAME` are the whole
    vision side and a whole stream. Raises RecipeError or UsageError.
    """
    planned = plan(recipe)
    wholes = _wholes(planned, crops)
    known = {name for node in planned.nodes for name in _names(node)} | wholes.keys()
    for name in only:
        if name not in known:
            has = ", ".join([*(node.address for node in planned.nodes), *wholes])
            raise UsageError(f"recipe '{recipe.name}' has no block '{name}'; it has {has}")
    text = planned.largest_layout.tokens if planned.layouts is not None else 0
    cases: list[AnyCase] = [
        Case(
            node.address,
            registry.spec(node.family, node.type),
            node.config,
            node.site,
            crops,
            text if node.family in ("injectors", "language_models") else 0,
        )
        for node in planned.nodes
        if not only or set(only) & _names(node)
    ]
    cases += [whole for name, whole in wholes.items() if name in only or (not only and name == VISION)]
    return cases, []


def _wholes(planned: Plan, crops: int) -> dict[str, Whole]:
    found = {f"streams.{name}": Whole(f"streams.{name}", planned, (name,), False, crops) for name in planned.streams}
    return {**found, VISION: Whole(VISION, planned, tuple(planned.streams), True, crops)}


def instead(case: AnyCase, address: str) -> Case:
    """Another block on the same inputs, with the first of its example configs."""
    spec = find_block(address)
    if not isinstance(case, Case) or case.spec.family not in STEP_FAMILIES or spec.family not in STEP_FAMILIES:
        raise UsageError(f"--against {address}: only a step can stand in the place of a step, not of {case.address}")
    config = configure(spec, {})
    names = list(input_names(config)) or ["input"]
    given = list(case.site.inputs.values())
    if len(names) != len(given):
        raise UsageError(f"{spec.address} reads {len(names)} inputs, {case.address} reads {len(given)}")
    return replace(make_case(spec, config, dict(zip(names, given, strict=True))), crops=case.crops)


def find_block(name: str) -> BlockSpec:
    """The spec of a block from `family/name`, or of a step from its bare name. Raises UnknownBlockError."""
    family, slash, block = name.partition("/")
    return registry.spec(discovery.family_name(family), block) if slash else registry.step_spec(name)


def configure(spec: BlockSpec, options: Mapping[str, Any]) -> BlockConfig:
    """The first example of a block with `options` changed. Raises UsageError naming the option at fault."""
    values = {**(spec.examples[0] if spec.examples else {}), **options}
    try:
        return spec.config.model_validate_json(json.dumps({"type": spec.name, **values}))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        hint = f"`fusionkit show {spec.address}` lists its options"
        raise UsageError(f"{spec.address}: {where}: {first['msg']} ({hint})") from error


def make_case(spec: BlockSpec, config: BlockConfig, inputs: Inputs) -> Case:
    """The case of a step outside any recipe."""
    if spec.plan is None:  # BlockSpec refuses steps without a planner; this tells the type checker
        raise UsageError(f"{spec.address} has no planner")
    try:
        planned = spec.plan(config, inputs, None)
    except ShapeError as error:
        shown = ", ".join(f"{name} {given}" for name, given in inputs.items())
        raise ShapeError(f"{spec.address} on {shown}: {error}") from error
    site = BlockSite(address=spec.address, inputs=MappingProxyType(dict(inputs)), plan=planned)
    return Case(spec.address, spec, config, site)


def _names(node: Node) -> set[str]:
    return {node.address, node.type, f"{node.family}/{node.type}"}
