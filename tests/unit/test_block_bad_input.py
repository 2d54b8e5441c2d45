"""What a recipe may get wrong about one block: the whole text, with line, address, expected and got."""

from __future__ import annotations

from pathlib import Path

import pytest
from plan_recipe import loaded

import fusionkit
from fusionkit.errors import RecipeError, RecipeValidationError
from fusionkit.geometry import Grid, LayerStackSpec
from fusionkit.recipe.plan import plan

SELECT, MIX, ALIGN = "select: {type: all}", "mix: {type: orthogonal", "memory: spatial, heads: 2"
POOL = "pool: {type: average_pool, window: [2, 2]"

# What is written in place of what, and the message after the name of the file.
CASES: dict[str, tuple[str, str, str]] = {
    "zero layers": (
        SELECT,
        "select: {type: list, layers: []}",
        "8:26: streams.semantic.select.layers: must have at least 1 item, got 0",
    ),
    "the last none": (
        SELECT,
        "select: {type: last, count: 0}",
        "8:26: streams.semantic.select.count: must be >= 1, got 0",
    ),
    "unknown map": (
        MIX,
        MIX + ", map: caylay",
        "10:31: streams.semantic.steps.mix.map: must be 'cayley' or 'exp', got 'caylay' (did you mean 'cayley'?)",
    ),
    "not a number": (MIX, MIX + ", logit_init: [.nan, 0, 0]", "10:44: .nan is no number a recipe can hold"),
    "an infinite gate": (ALIGN, ALIGN + ", gate_init: .inf", "18:94: .inf is no number a recipe can hold"),
    "a logit too few": (
        MIX,
        MIX + ", logit_init: [0.0, 0.0]",
        "10:31: streams.semantic.steps.mix.logit_init: 3 layers are selected, got 2 logits "
        "(give one per selected layer, lowest first)",
    ),
    "width 0": (MIX, MIX + ", width: 0", "10:31: streams.semantic.steps.mix.width: must be >= 1, got 0"),
    "groups of key and value heads": (
        ALIGN,
        ALIGN + ", kv_heads: 5",
        "18:83: fusion.align.kv_heads: 5 kv_heads do not divide 2 heads (use 1 or 2)",
    ),
    "heads that cannot be rotated": (
        ALIGN,
        ALIGN + ", head_width: 5",
        "18:83: fusion.align.head_width: heads of 5 cannot be rotated on two axes "
        "(the head width must be a multiple of 4, or rope: null)",
    ),
    "an empty group": (
        "mix: {type: softmax_sum}",
        "mix: {type: group_mean, groups: 3}",
        "15:31: streams.spatial.steps.mix.groups: 3 groups of 2 layers: one would be empty",
    ),
    "heads of a pooler": (
        POOL,
        "pool: {type: attention_pool, window: [2, 2], heads: 5",
        "19:48: fusion.pool.heads: 5 heads do not divide the width 24 (use 3 or 4 or 6)",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_told_before_anything_is_built(case: str, tmp_path: Path) -> None:
    old, new, message = CASES[case]

    def planned() -> None:
        plan(loaded(tmp_path, (old, new)))

    with pytest.raises(RecipeError) as caught:
        planned()
    assert str(caught.value) == f"{tmp_path}/pair.yaml:{message}"


def test_numbers_from_python_must_be_finite_too() -> None:
    stack = LayerStackSpec((1, 2), Grid(2, 2), 8)
    expected = r"^mixers/orthogonal: logit_init.0: nan is no number a recipe can hold$"
    with pytest.raises(RecipeValidationError, match=expected):
        fusionkit.create("mixers/orthogonal", stack, logit_init=[float("nan"), 0.0])
