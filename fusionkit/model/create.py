"""`fusionkit.create`: one block as a plain module, for a model that is not built from a recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError
from torch import nn

from fusionkit import discovery, registry
from fusionkit.errors import BuildError, FusionkitError, RecipeError, RecipeValidationError, UsageError
from fusionkit.geometry import LayerStackSpec, TokenSpec
from fusionkit.plugin import STEP_FAMILIES, BlockConfig, BlockSite, BlockSpec, input_fields, input_names
from fusionkit.recipe.mapping_source import from_mapping
from fusionkit.recipe.problems import translate
from fusionkit.recipe.schema import Step
from fusionkit.recipe.section import Section

Shape = TokenSpec | LayerStackSpec


def create(
    name: str, inputs: Shape | Mapping[str, Shape], *, target_width: int | None = None, **config: Any
) -> nn.Module:
    """Build one mixer, adapter, pooler or connector.

    `name` is `mixers/orthogonal`, `mixer/orthogonal` or `orthogonal`. `inputs` is the shape it will read: a
    LayerStackSpec for mixers, a TokenSpec for others, or for connectors one shape per argument of `forward`.
    `target_width` is the output width where `config` gives none. `config` holds the options `fusionkit show` lists.
    The module is called as `fusionkit.plugin` describes for its family.

    Raises: UsageError, UnknownBlockError, RecipeValidationError (a wrong option), ShapeError, BuildError.

    Example: `create("mixers/orthogonal", LayerStackSpec((1, 2, 3), Grid(14, 14), 384), share="encoder")`.
    """
    spec = _step(name)
    if spec.plan is None:  # BlockSpec refuses steps without a planner; this tells the type checker
        raise UsageError(f"{spec.address} has no planner")
    named = _named(inputs)
    checked = _configure(spec, named, config)
    expected = set(input_names(checked)) or {"input"}
    if set(named) != expected:
        raise UsageError(f"{spec.address} reads {_listed(expected)}, got shapes for {_listed(named)}")
    plan = spec.plan(checked, named, target_width)
    site = BlockSite(address=spec.address, inputs=MappingProxyType(named), plan=plan)
    try:
        module = registry.factory(spec)(checked, site)
    except FusionkitError:
        raise
    except Exception as error:  # a plugin may raise anything; the reader needs the block and the cause
        raise BuildError(f"{spec.address} failed to build: {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise BuildError(f"the factory of {spec.address} returned a {type(module).__name__}, not a module")
    return module


def _named(inputs: object) -> dict[str, Shape]:
    if isinstance(inputs, TokenSpec | LayerStackSpec):
        return {"input": inputs}
    if isinstance(inputs, Mapping) and all(isinstance(shape, TokenSpec | LayerStackSpec) for shape in inputs.values()):
        return dict(inputs)
    raise UsageError(
        f"create() takes shapes as inputs: a LayerStackSpec for mixers, a TokenSpec for others, or a mapping of them "
        f"for connectors; got {inputs!r}"
    )


def _step(name: str) -> BlockSpec:
    family, slash, block = name.partition("/")
    if not slash:
        return registry.step_spec(name)
    family = discovery.family_name(family)
    if family not in STEP_FAMILIES:
        raise UsageError(
            f"create() builds {', '.join(STEP_FAMILIES)}; {family} need their place in a recipe: "
            "write a recipe, a dict will do, and use fusionkit.build()"
        )
    return registry.spec(family, block)


class _OneStep(Section):
    """The smallest part of a recipe that holds a step, so that wrong options read as they do in recipes."""

    fusion: dict[str, Step]


def _configure(spec: BlockSpec, inputs: Mapping[str, Shape], options: Mapping[str, Any]) -> BlockConfig:
    """The checked config; fields that name what a step reads are filled in from the names of `inputs`."""
    values = {"fusion": {"step": {"type": spec.name, **_input_options(spec.config, inputs), **options}}}
    try:
        tree = from_mapping(values, spec.address)
        try:
            # By way of JSON, as recipes are: lists stand for tuples, and nothing is coerced.
            return _OneStep.model_validate_json(json.dumps(values)).fusion["step"]
        except ValidationError as error:
            raise RecipeValidationError(translate(error, tree)) from error
    except RecipeError as error:
        raise RecipeValidationError(
            replace(problem, address=problem.address.removeprefix("fusion.step").lstrip("."))
            for problem in error.problems
        ) from error


def _input_options(config: type[BlockConfig], inputs: Mapping[str, Shape]) -> dict[str, Any]:
    """`query=` for a shape called query; the list of all names where a config takes a list of inputs."""
    if "input" in inputs:
        return {}
    fields = input_fields(config)
    scalars = {name: name for name in fields if name in inputs}
    rest = [name for name in inputs if name not in scalars]
    lists = [name for name in fields if name not in inputs and config.model_fields[name].is_required()]
    return {**scalars, **({lists[0]: rest} if rest and len(lists) == 1 else {})}


def _listed(names: Any) -> str:
    return ", ".join(sorted(names)) or "nothing"
