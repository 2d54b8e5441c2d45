"""What is measured: one block with its config, its input shapes and a number of crops. From names or from a recipe."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from fusionkit import discovery, registry
from fusionkit.errors import ShapeError, UsageError
from fusionkit.geometry import Grid, LayerStackSpec, TokenSpec
from fusionkit.plugin import FAMILIES, STEP_FAMILIES, BlockConfig, BlockSite, BlockSpec, input_names
from fusionkit.recipe import Recipe
from fusionkit.recipe.plan import Node, plan

Inputs = Mapping[str, TokenSpec | LayerStackSpec]
_PLURALS = {FAMILIES[name].singular: name for name in STEP_FAMILIES}


@dataclass(frozen=True, slots=True)
class Case:
    """One block in one place; `name` is its address in a recipe, or `family/name`."""

    name: str
    spec: BlockSpec
    config: BlockConfig
    site: BlockSite
    crops: int = 1

    @property
    def options(self) -> dict[str, Any]:
        """The config as JSON-able values."""
        return self.config.model_dump(mode="json")

    @property
    def shape(self) -> dict[str, Any]:
        """Crops, inputs and output as JSON-able values."""
        outputs = {} if self.site.plan is None else self.site.plan.outputs
        return {
            "crops": self.crops,
            "inputs": {name: _sizes(spec) for name, spec in self.site.inputs.items()},
            "outputs": {name: _sizes(spec) for name, spec in outputs.items()},
        }

    def instead(self, address: str) -> Case:
        """Another block on the same inputs, with the first of its example configs."""
        spec = find_block(address)
        config = configure(spec, {})
        names = list(input_names(config)) or ["input"]
        given = list(self.site.inputs.values())
        if len(names) != len(given):
            raise UsageError(f"{spec.address} reads {len(names)} inputs, {self.spec.address} reads {len(given)}")
        return replace(make_case(spec, config, dict(zip(names, given, strict=True))), crops=self.crops)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A part of a recipe that is not measured, and why."""

    name: str
    block: str
    reason: str


@dataclass(frozen=True, slots=True)
class Shape:
    """What `--shape` says; `memory_*` are for the second and further inputs of a connector."""

    layers: int = 12
    grid: Grid = field(default_factory=lambda: Grid(16, 16))
    width: int = 384
    crops: int = 1
    memory_grid: Grid | None = None
    memory_width: int | None = None

    def inputs(self, family: str, names: Sequence[str]) -> dict[str, TokenSpec | LayerStackSpec]:
        """The shapes of a block's inputs."""
        if family == "mixers":
            return {"input": LayerStackSpec(tuple(range(1, self.layers + 1)), self.grid, self.width)}
        first, *others = names or ["input"]
        memory = TokenSpec(self.memory_grid or self.grid, self.memory_width or self.width)
        return {first: TokenSpec(self.grid, self.width), **dict.fromkeys(others, memory)}


def parse_shape(text: str) -> Shape:
    """A shape from `layers=27,grid=24x24,width=1152,crops=1,memory_grid=14x14,memory_width=1024`, in any order."""
    example = "for example layers=27,grid=24x24,width=1152"
    values: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        if name not in Shape.__dataclass_fields__:
            raise UsageError(f"--shape: unknown '{name}'; expected {', '.join(Shape.__dataclass_fields__)} ({example})")
        if name in values:
            raise UsageError(f"--shape: '{name}' is given twice")
        pattern = r"([1-9]\d*)x([1-9]\d*)" if name.endswith("grid") else r"([1-9]\d*)"
        found = re.fullmatch(pattern, value)
        if not found:
            wanted = "HEIGHTxWIDTH" if name.endswith("grid") else "a whole number of at least 1"
            raise UsageError(f"--shape: {name} must be {wanted}, got '{value}' ({example})")
        numbers = [int(number) for number in found.groups()]
        values[name] = Grid(*numbers) if len(numbers) == 2 else numbers[0]
    return Shape(**values)


def cases_from_names(names: Sequence[str], shape: Shape, options: Mapping[str, Any] | None = None) -> list[Case]:
    """A case for every block named; a family's name stands for all its blocks.

    Raises: UsageError, UnknownBlockError (also for families that are not steps), ShapeError (the block refuses the shape).
    """
    cases = []
    for name in names:
        family = _PLURALS.get(name, name)
        addresses = [f"{family}/{block}" for block in registry.names(family)] if family in STEP_FAMILIES else [name]
        for address in addresses:
            spec = find_block(address)
            config = configure(spec, options or {})
            inputs = shape.inputs(spec.family, list(input_names(config)))
            cases.append(replace(make_case(spec, config, inputs), crops=shape.crops))
    return cases


def cases_from_recipe(recipe: Recipe, crops: int = 1, only: Sequence[str] = ()) -> tuple[list[Case], list[LeftOut]]:
    """A case for every step of a recipe, on the shapes its plan gives; and the parts that are no steps.

    `only` keeps the steps of these addresses, types or `family/type`s. Raises RecipeError or UsageError.
    """
    nodes = plan(recipe).nodes
    known = {name for node in nodes for name in _names(node)}
    for name in only:
        if name not in known:
            raise UsageError(f"recipe '{recipe.name}' has no block '{name}'; it has {', '.join(_steps(nodes))}")
    cases, left_out = [], []
    for node in nodes:
        if only and not known.intersection(only) & _names(node):
            continue
        if node.family in STEP_FAMILIES:
            cases.append(Case(node.address, registry.spec(node.family, node.type), node.config, node.site, crops))
        else:
            reason = f"{FAMILIES[node.family].singular}s are not measured yet; planned FLOPs {node.flops:,}"
            left_out.append(LeftOut(node.address, f"{node.family}/{node.type}", reason))
    return cases, left_out


def find_block(name: str) -> BlockSpec:
    """The spec of a step from `family/name` or its bare name. Raises UsageError or UnknownBlockError."""
    family, slash, block = name.partition("/")
    if not slash:
        return registry.step_spec(name)
    family = discovery.family_name(family)
    if family in FAMILIES and family not in STEP_FAMILIES:
        raise UsageError(f"{name}: {family} are not measured yet; bench measures {', '.join(STEP_FAMILIES)}")
    return registry.spec(family, block)


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
    """The case of a block outside any recipe."""
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


def _steps(nodes: Sequence[Node]) -> list[str]:
    return [node.address for node in nodes if node.family in STEP_FAMILIES]


def _sizes(spec: TokenSpec | LayerStackSpec) -> dict[str, Any]:
    grid = [spec.grid.height, spec.grid.width]
    if isinstance(spec, LayerStackSpec):
        return {"layers": spec.depth, "grid": grid, "width": spec.width}
    return {"grid": grid, "width": spec.width, **({"copies": spec.copies} if spec.copies > 1 else {})}
