"""Differences between recipes: by meaning in the recipe, by figures in the plan."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fusionkit.recipe import load_recipe
from fusionkit.recipe.compare import Change, Kind, changes
from fusionkit.recipe.diff import diff


def found(before: Any, after: Any, address: str = "") -> list[Change]:
    return list(changes(before, after, address))


def test_equal_values_do_not_differ() -> None:
    value = {"a": [1, {"b": None}], "c": {"type": "x"}}
    assert not found(value, json.loads(json.dumps(value)))
    assert not found({"a": 1, "b": 2}, {"b": 2, "a": 1}), "order of keys means nothing"


def test_values_added_removed_and_changed_are_told_apart() -> None:
    assert found({"a": 1, "b": 2, "c": 3, "d": None}, {"b": 5, "c": None, "d": 4, "e": 6}) == [
        Change("a", Kind.REMOVED, 1, None),
        Change("b", Kind.CHANGED, 2, 5),
        Change("c", Kind.REMOVED, 3, None),
        Change("d", Kind.ADDED, None, 4),
        Change("e", Kind.ADDED, None, 6),
    ]


def test_true_is_not_one_and_one_is_not_one_point_zero() -> None:
    assert found({"a": True, "b": 1}, {"a": 1, "b": 1.0}) == [
        Change("a", Kind.CHANGED, True, 1),
        Change("b", Kind.CHANGED, 1, 1.0),
    ]


def test_a_block_of_another_type_is_replaced_as_one() -> None:
    before, after = {"type": "a", "p": 1}, {"type": "b", "q": 2}
    assert found({"x": before}, {"x": after}) == [Change("x", Kind.REPLACED, before, after)]


def test_lists_of_blocks_are_compared_one_by_one_when_as_long() -> None:
    before = {"data": [{"type": "a", "weight": 1}, {"type": "b"}]}
    assert found(before, {"data": [{"type": "a", "weight": 2}, {"type": "b"}]}) == [
        Change("data.0.weight", Kind.CHANGED, 1, 2)
    ]
    assert [each.address for each in found(before, {"data": []})] == ["data"]
    assert found({"betas": [1, 2]}, {"betas": [1, 3]}) == [Change("betas", Kind.CHANGED, [1, 2], [1, 3])]


@pytest.mark.parametrize("address", ["fusion", "streams.a.steps", "injectors", "train.stages", "streams"])
def test_the_order_of_steps_is_compared(address: str) -> None:
    before, after = {"a": {}, "b": {}, "c": {}}, {"b": {}, "x": {}, "a": {}}
    assert found(before, after, address)[0] == Change(address, Kind.REORDERED, ["a", "b"], ["b", "a"])


def test_texts_are_for_people() -> None:
    change = Change("x", Kind.REPLACED, {"type": "a"}, ["p", "q"])
    assert (change.before_text, change.after_text) == ("a", "[p, q]")
    assert Change("x", Kind.CHANGED, None, 0.5).before_text == "null"
    assert len(Change("x", Kind.CHANGED, {"a": "y" * 900}, 1).before_text) == 60


BIG = load_recipe("builtin:come_vl", set=["train=null"])


def test_a_recipe_does_not_differ_from_itself_by_another_name() -> None:
    same = diff(BIG, load_recipe(BIG.canonical(), set=["name=other", "summary=x"]))
    assert same.equal
    assert not same.nodes


def test_the_figures_of_changed_blocks_are_given() -> None:
    small = diff(BIG, load_recipe("builtin:come_vl_small", set=["train=null"]))
    assert not small.equal
    [encoder] = [each for each in small.nodes if each.address == "streams.semantic.encoder"]
    assert encoder.before is not None
    assert encoder.after is not None
    assert (encoder.before.output, encoder.after.output) == ("24x24 tokens of width 1152", "24x24 tokens of width 768")
    assert encoder.before.params > encoder.after.params > 0
    assert small.totals is not None
    assert small.totals["visual tokens of one crop"] == (144, 144)
    assert small.totals["parameters"][0] > 8e9
    assert json.loads(json.dumps(small.to_dict()))["totals"]["visual tokens of one crop"] == {
        "before": 144,
        "after": 144,
    }


def test_a_step_that_only_one_recipe_has_is_shown() -> None:
    pooled = diff(BIG, load_recipe("builtin:come_vl_pooled_first", set=["train=null"]))
    kinds = {each.address: each.kind for each in pooled.changes}
    assert kinds["streams.semantic.steps.pool"] is Kind.ADDED
    assert kinds["fusion.pool"] is Kind.REMOVED
    [gone] = [each for each in pooled.nodes if each.address == "fusion.pool"]
    assert gone.after is None


def test_a_recipe_that_cannot_be_planned_is_still_compared() -> None:
    wrong = load_recipe(BIG.canonical(), set=["fusion.align.heads=7"])
    partial = diff(BIG, wrong)
    assert [each.address for each in partial.changes] == ["fusion.align.heads"]
    assert partial.totals is None
    assert "fusion.align.heads" in partial.unplanned
