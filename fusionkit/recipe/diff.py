"""What differs between two recipes: blocks and values, and through their plans shapes, parameters and costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fusionkit.errors import RecipeError
from fusionkit.recipe.compare import Change, changes
from fusionkit.recipe.plan import Node, Plan, plan
from fusionkit.recipe.schema import Recipe


@dataclass(frozen=True, slots=True)
class Figures:
    """What a plan says of one block: output, parameters, and FLOPs of a forward pass."""

    block: str
    output: str
    params: int
    flops: int


@dataclass(frozen=True, slots=True)
class NodeChange:
    """A block whose figures differ; None where a recipe does not have it."""

    address: str
    before: Figures | None
    after: Figures | None


@dataclass(frozen=True, slots=True)
class Difference:
    """All that differs. `nodes` and `totals` are empty, and `unplanned` says why, if a recipe cannot be planned."""

    changes: tuple[Change, ...]
    nodes: tuple[NodeChange, ...] = ()
    totals: Mapping[str, tuple[int, int]] | None = None
    unplanned: str = ""

    @property
    def equal(self) -> bool:
        """Whether both recipes mean the same; names and summaries apart."""
        return not self.changes

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        return {
            "equal": self.equal,
            "changes": [
                {"address": each.address, "kind": str(each.kind), "before": each.before, "after": each.after}
                for each in self.changes
            ],
            "nodes": [
                {"address": each.address, "before": _figures_dict(each.before), "after": _figures_dict(each.after)}
                for each in self.nodes
            ],
            "totals": {name: {"before": a, "after": b} for name, (a, b) in (self.totals or {}).items()},
            "unplanned": self.unplanned,
        }


def diff(before: Recipe, after: Recipe) -> Difference:
    """Compare two recipes.

    Example: `diff(load_recipe("builtin:come_vl"), load_recipe("builtin:come_vl_small")).totals["parameters"]`
    """
    found = tuple(changes(_meaning(before), _meaning(after)))
    try:
        plans = plan(before), plan(after)
    except RecipeError as error:
        return Difference(found, unplanned=str(error.problems[0]))
    return Difference(found, _node_changes(*plans), _totals(*plans))


def _meaning(recipe: Recipe) -> dict[str, Any]:
    return {key: value for key, value in recipe.canonical().items() if key not in ("name", "summary")}


def _node_changes(before: Plan, after: Plan) -> tuple[NodeChange, ...]:
    old = {node.address: _figures(node) for node in before.nodes}
    new = {node.address: _figures(node) for node in after.nodes}
    found = [NodeChange(address, figures, new.get(address)) for address, figures in old.items()]
    found += [NodeChange(address, None, figures) for address, figures in new.items() if address not in old]
    return tuple(each for each in found if each.before != each.after)


def _totals(before: Plan, after: Plan) -> dict[str, tuple[int, int]]:
    """Sums over the whole model, and what one picture takes."""
    totals = {
        "parameters": (before.parameters, after.parameters),
        "FLOPs of one crop": (before.flops(1), after.flops(1)),
        "visual tokens of one crop": (before.visual.tokens, after.visual.tokens),
    }
    if before.layouts is not None and after.layouts is not None:
        totals["tokens of the largest picture"] = (before.largest_layout.tokens, after.largest_layout.tokens)
    return totals


def _figures(node: Node) -> Figures:
    output = node.plan.outputs.get("main")  # a language model puts out text
    return Figures(f"{node.family}/{node.type}", "" if output is None else str(output), node.params, node.flops)


def _figures_dict(figures: Figures | None) -> dict[str, Any] | None:
    if figures is None:
        return None
    return {"block": figures.block, "output": figures.output, "params": figures.params, "flops": figures.flops}
