"""`fusionkit.create`: one block as a plain module."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fusionkit
from fusionkit.errors import BuildError, RecipeValidationError, ShapeError, UnknownBlockError, UsageError
from fusionkit.geometry import Grid, LayerStackSpec, TokenSpec
from fusionkit.ops.tokens import Tokens
from fusionkit.plugin import BlockPlan, BlockSpec, StepConfig

GRID = Grid(4, 4)
STACK = LayerStackSpec((1, 2, 3), GRID, 8)
TOKENS = TokenSpec(GRID, 8)
WIDE = TokenSpec(GRID, 128)


@pytest.mark.parametrize("name", ["mixers/orthogonal", "mixer/orthogonal", "orthogonal"])
def test_a_mixer_by_any_of_its_names(name: str) -> None:
    mixer = fusionkit.create(name, STACK, share="encoder")
    assert isinstance(mixer, nn.Module)
    assert mixer([torch.zeros(2, 16, 8)] * 3).shape == (2, 16, 8)


def test_a_target_width_is_taken_where_no_width_is_given() -> None:
    adapter = fusionkit.create("linear", TOKENS, target_width=12)
    assert adapter(Tokens(torch.zeros(1, 16, 8), GRID)).x_BND.shape == (1, 16, 12)


def test_shapes_name_the_arguments_of_a_connector() -> None:
    connector = fusionkit.create("rope_cross_attention", {"query": WIDE, "memory": WIDE}, heads=2)
    tokens = Tokens(torch.zeros(1, 16, 128), GRID)
    assert connector(query=tokens, memory=tokens).x_BND.shape == (1, 16, 128)
    concat = fusionkit.create("concat", {"here": TOKENS, "there": TOKENS})
    small = Tokens(torch.zeros(1, 16, 8), GRID)
    assert concat(here=small, there=small).x_BND.shape == (1, 16, 16)


@pytest.mark.parametrize(
    ("name", "inputs", "options", "error", "message"),
    [
        (
            "orthogonal",
            STACK,
            {"share": "encodr", "foo": 1},
            RecipeValidationError,
            "mixers/orthogonal: foo: unknown key (known: type, input, logit_init, width, share, map, init)\n"
            "mixers/orthogonal: share: must be 'layer' or 'encoder', got 'encodr' (did you mean 'encoder'?)",
        ),
        (
            "orthogonal",
            TOKENS,
            {},
            ShapeError,
            "a mixer reads the selected layers of an encoder, got 4x4 tokens of width 8 "
            "(make it the first step of its stream)",
        ),
        ("linear", {"x": TOKENS}, {}, UsageError, "adapters/linear reads input, got shapes for x"),
        (
            "rope_cross_attention",
            {"query": WIDE, "memory": WIDE, "more": WIDE},
            {"heads": 2},
            UsageError,
            "connectors/rope_cross_attention reads memory, query, got shapes for memory, more, query",
        ),
        (
            "linear",
            TOKENS,
            {"width": object()},
            RecipeValidationError,
            "adapters/linear: width: must be a string, number, boolean, None, list or dict, got object",
        ),
        (
            "encoders/timm",
            TOKENS,
            {},
            UsageError,
            "create() builds mixers, adapters, poolers, connectors; encoders need their place in a recipe: "
            "write a recipe, a dict will do, and use fusionkit.build()",
        ),
    ],
)
def test_what_does_not_fit_is_said(
    name: str, inputs: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as raised:
        fusionkit.create(name, inputs, **options)
    assert str(raised.value) == message


def test_an_unknown_block_gets_a_guess() -> None:
    with pytest.raises(UnknownBlockError, match="did you mean 'orthogonal'"):
        fusionkit.create("mixers/orthgonal", STACK)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("builtins:int", "adapters/my.x failed to build: TypeError: "),
        ("operator:is_", "the factory of adapters/my.x returned a bool, not a module"),
    ],
)
def test_a_factory_that_fails_is_named(factory: str, message: str) -> None:
    config = type("Config", (StepConfig,), {"__annotations__": {"type": str}, "type": "my.x"})
    spec = BlockSpec(
        api=1,
        family="adapters",
        config=config,
        plan=lambda config, inputs, width: BlockPlan.of(inputs["input"]),
        factory=factory,
        summary="Mine.",
    )
    with fusionkit.override(spec), pytest.raises(BuildError) as raised:
        fusionkit.create("adapters/my.x", TOKENS)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize("inputs", [3, "tokens", {"input": 3}])
def test_inputs_must_be_shapes(inputs: object) -> None:
    with pytest.raises(UsageError, match=r"create\(\) takes shapes as inputs: .* got "):
        fusionkit.create("mixers/orthogonal", inputs)  # type: ignore[arg-type]
