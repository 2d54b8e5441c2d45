"""Build a plan on the meta device and compare parameters, address by address."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from fusionkit.recipe import Recipe
    from fusionkit.recipe.plan import Plan


@dataclass(frozen=True, slots=True)
class Comparison:
    """Parameters of the built model, and (address, planned, built) wherever the two differ."""

    built: int
    differences: tuple[tuple[str, int, int], ...]

    @property
    def equal(self) -> bool:
        return not self.differences


def compare(recipe: Recipe) -> tuple[Plan, Comparison]:
    """Plan a recipe, asking the libraries for models that the built-in table does not list, and build it on meta."""
    from fusionkit.architectures import asking_libraries
    from fusionkit.model.build import build
    from fusionkit.recipe.plan import plan as plan_recipe

    with asking_libraries():
        plan = plan_recipe(recipe)
        model = build(plan, device="meta")
    return plan, compare_parameters(plan, model)


def compare_parameters(plan: Plan, model: nn.Module) -> Comparison:
    """Count the model's parameters below every planned address; what lies below none of them is a difference too."""
    built = {node.address: _count(model.get_submodule(node.address)) for node in plan.nodes}
    planned = {node.address: node.params for node in plan.nodes}
    total = _count(model)
    differences = [
        (address, planned[address], built[address]) for address in built if planned[address] != built[address]
    ]
    if total != sum(built.values()):
        differences.append(("(outside all addresses, or shared)", 0, total - sum(built.values())))
    return Comparison(total, tuple(differences))


def _count(module: nn.Module) -> int:
    """Parameters of a module, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())
