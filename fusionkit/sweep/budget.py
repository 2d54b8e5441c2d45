"""Variants as recipes at a matched budget: checked by planning, before anything is trained. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fusionkit.errors import FusionkitError, UsageError
from fusionkit.recipe import Recipe, load_recipe
from fusionkit.recipe.plan import Plan
from fusionkit.recipe.plan import plan as plan_recipe
from fusionkit.sweep.grid import Grid, Variant

LARGEST = 1 << 20
"""No width is adjusted beyond this."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One variant: its changes with all adjustments, and what it costs."""

    name: str
    summary: str
    changes: tuple[str, ...]
    parameters: int
    visual_tokens: int
    flops: int
    exempt: str

    def recipe(self, source: str, seed: int) -> Recipe:
        """The recipe of one run."""
        return load_recipe(source, set=(*self.changes, f"train.seed={seed}"))


def plan_variants(grid: Grid, source: str, extra: Sequence[str] = ()) -> list[Planned]:
    """Every variant of a sweep, the reference first.

    Raises UsageError when one does not match the budget, RecipeError when one is no valid recipe.
    """
    common = (*grid.changes, *extra)
    names = [grid.reference, *(name for name in grid.variants if name != grid.reference)]
    reference = _plan(source, grid.variants[grid.reference], common, grid.reference)
    planned = []
    for name in names:
        variant = grid.variants[name]
        changes = (*common, *variant.changes)
        if variant.adjust is not None:
            changes = (*changes, _adjusted(source, changes, variant.adjust, reference.parameters, name))
        plan = _plan(source, Variant(changes=changes), (), name)
        if grid.match.training_tokens:
            changes = (*changes, *_steps(plan, reference))
        if not variant.exempt:
            _check(grid, name, plan, reference)
        planned.append(
            Planned(
                name,
                variant.summary,
                changes,
                plan.parameters,
                _tokens(plan),
                plan.flops(_crops(plan), _tokens(plan)),
                variant.exempt,
            )
        )
    return planned


def _plan(source: str, variant: Variant, common: Sequence[str], name: str) -> Plan:
    try:
        return plan_recipe(load_recipe(source, set=(*common, *variant.changes)))
    except FusionkitError as error:
        raise UsageError(f"variant '{name}': {error}") from error


def _tokens(plan: Plan) -> int:
    return plan.visual.tokens * _crops(plan)


def _crops(plan: Plan) -> int:
    return plan.largest_layout.crops if plan.layouts is not None else 1


def _check(grid: Grid, name: str, plan: Plan, reference: Plan) -> None:
    for what, limit, found, wanted in (
        ("parameters", grid.match.parameters, plan.parameters, reference.parameters),
        ("visual tokens", grid.match.visual_tokens, _tokens(plan), _tokens(reference)),
    ):
        if limit is not None and abs(found - wanted) > limit * wanted:
            raise UsageError(
                f"variant '{name}' has {found:,} {what}, the reference {wanted:,}: {found / wanted - 1:+.1%}, allowed "
                f"±{limit:.1%} (`adjust: ADDRESS` finds a width that matches, `exempt: WHY` lets it be)"
            )


def _adjusted(source: str, changes: Sequence[str], address: str, wanted: int, name: str) -> str:
    """The value at `address` that brings the parameters closest to `wanted`; they must rise with it."""

    def parameters(value: int) -> int:
        return _plan(source, Variant(changes=(*changes, f"{address}={value}")), (), name).parameters

    low, high = 1, 1
    while parameters(high) < wanted:
        low, high = high, high * 2
        if high > LARGEST:
            raise UsageError(f"variant '{name}': no {address} up to {LARGEST:,} gives {wanted:,} parameters")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if parameters(middle) < wanted else (low, middle)
    best = min((low, high), key=lambda value: abs(parameters(value) - wanted))
    return f"{address}={best}"


def _steps(plan: Plan, reference: Plan) -> list[str]:
    """Steps of every stage that has some, so that they see as many visual tokens as the reference's."""
    train, known = plan.recipe.train, reference.recipe.train
    if train is None or known is None:
        return []
    found = []
    for name, stage in train.stages.items():
        like = known.stages.get(name)
        if stage.steps is not None and like is not None and like.steps is not None:
            steps = max(1, round(like.steps * _tokens(reference) / _tokens(plan)))
            found.append(f"train.stages.{name}.steps={steps}")
    return found
