"""Plan a recipe: every shape and cost, and every mismatch with its line, before any weight exists."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fusionkit.errors import PlanError
from fusionkit.recipe.load import load_recipe
from fusionkit.recipe.plan_budget import check_budget, make_cropper, new_tokens
from fusionkit.recipe.plan_fusion import check_injectors, describe_language_model, language_model_node, plan_fusion
from fusionkit.recipe.plan_streams import plan_streams
from fusionkit.recipe.plan_train import check_train
from fusionkit.recipe.plan_types import ENCODER, Node, Plan, StreamPlan
from fusionkit.recipe.plan_wiring import wire_fusion
from fusionkit.recipe.planning import Planning
from fusionkit.recipe.schema import Recipe

__all__ = ["ENCODER", "Node", "Plan", "StreamPlan", "plan"]


def plan(recipe: Recipe | str | Path | Mapping[str, Any]) -> Plan:
    """Plan a recipe, or whatever `load_recipe` takes, without torch.

    Raises PlanError with every problem that can be found: blocks that do not fit each other, names that nothing has
    or nothing reads, tokens that exceed the sequence.

    Example: `fusionkit.plan(fusionkit.load_recipe("builtin:tiny")).parameters`
    """
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    planning = Planning(loaded)
    info = describe_language_model(planning)
    check_injectors(planning)
    wiring = wire_fusion(planning)
    streams = plan_streams(planning, info.width if info is not None else None)
    fusion = plan_fusion(planning, wiring, streams, info) if wiring is not None else None
    cropper = make_cropper(planning)
    tokens = new_tokens(planning, cropper)
    layouts = check_budget(planning, cropper, fusion.visual if fusion is not None else None, info)
    check_train(planning, info)
    rows = info.embedding_rows(len(tokens)) if info is not None else 0
    largest = layouts.largest.tokens if layouts is not None else 0
    decoder = language_model_node(planning, info, rows, largest)
    if planning.problems or fusion is None or wiring is None:
        raise PlanError(planning.problems)
    return Plan(
        recipe=loaded,
        streams=MappingProxyType(streams),
        fusion=fusion.steps,
        injectors=fusion.injectors,
        visual=fusion.visual,
        visual_source=wiring.visual,
        language_model=info,
        language_model_node=decoder,
        embedding_rows=rows,
        new_tokens=tokens,
        layouts=layouts,
    )
