"""What the parts of the planner share: the problems found so far, and how one block is planned.

Planning goes on after a problem as far as it can: whatever needs a block that could not be planned is skipped, so
that every problem is reported once, where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from fusionkit import registry
from fusionkit.errors import FusionkitError, PluginError, Problem, ShapeError
from fusionkit.geometry import LayerStackSpec, TokenSpec
from fusionkit.plugin import BlockConfig, BlockPlan, BlockSite, BlockSpec, Like
from fusionkit.recipe.nearest import nearest
from fusionkit.recipe.plan_types import Node

if TYPE_CHECKING:
    from fusionkit.recipe.schema import Recipe

Shape = TokenSpec | LayerStackSpec
T = TypeVar("T")

MANY = 8
"""More names than this are not all listed in a message."""


class Planning:
    """The recipe being planned and the problems found in it."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.problems: list[Problem] = []

    def fault(self, address: str, message: str, hint: str = "") -> None:
        """Note a problem at an address of the recipe."""
        problem = self.recipe.problem(address, message, hint)
        if problem not in self.problems:
            self.problems.append(problem)

    def attempt(self, address: str, block: str, call: Callable[[], T]) -> T | None:
        """What `call` returns; None if the code of `block` raises, which becomes a problem at its address or field."""
        try:
            return call()
        except ShapeError as error:
            self.fault(f"{address}.{error.field}" if error.field else address, error.message, error.hint)
        except FusionkitError as error:
            self.fault(address, str(error))
        except Exception as error:
            # A planner is third-party code: what it raises by mistake must name the block, not look like our fault.
            cause = f"{type(error).__name__}: {error}"
            raise PluginError(f"{address}: {block} could not be planned ({cause}); report it to its author") from error
        return None

    def node(
        self,
        address: str,
        family: str,
        config: BlockConfig,
        inputs: Mapping[str, Shape],
        sources: Mapping[str, str],
        target_width: int | None,
    ) -> Node | None:
        """Plan one step or injector; None when it does not fit (the problem is noted)."""
        spec = registry.spec(family, config.type)
        planned = self.attempt(address, spec.address, lambda: plan_block(spec, config, inputs, target_width))
        if planned is None:
            return None
        site = BlockSite(address=address, inputs=MappingProxyType(dict(inputs)), plan=planned)
        return make_node(config, family, site, sources=sources)


def plan_block(
    spec: BlockSpec, config: BlockConfig, inputs: Mapping[str, Shape], target_width: int | None
) -> BlockPlan:
    """What the block's planner says; a block without a planner (some injectors) passes its input on at no cost."""
    if spec.plan is not None:
        return spec.plan(config, inputs, target_width)
    passed = inputs["input"]
    if isinstance(passed, LayerStackSpec):
        raise ShapeError("has no planner for a stack of layers")
    return BlockPlan.of(passed, reads=(passed,))


def make_node(config: BlockConfig, family: str, site: BlockSite, *, sources: Mapping[str, str] | None = None) -> Node:
    """A node from a site whose plan is set."""
    plan = site.plan or BlockPlan({})
    return Node(
        address=site.address,
        family=family,
        type=config.type,
        config=config,
        sources=MappingProxyType(dict(sources or {})),
        site=site,
        plan=plan,
        params=plan.params,
        flops=plan.flops,
        distribution=registry.distribution(family, config.type),
    )


def torch_free(family: str, config: BlockConfig, address: str) -> Any:
    """A selector, box tokenizer or cropper: a block whose object works without torch."""
    return registry.factory(registry.spec(family, config.type))(config, BlockSite(address=address))


def likes(config: BlockConfig) -> dict[str, str]:
    """The fields of a config that say `{like: NAME}`: field -> name."""
    values = ((field, getattr(config, field)) for field in type(config).model_fields)
    return {field: value.like for field, value in values if isinstance(value, Like)}


def suggestion(name: str, known: list[str]) -> str:
    """The name that was probably meant, and the names there are: all of few, the first of many."""
    near = nearest(name, known)
    if near and len(known) > MANY:
        return f"did you mean `{near}`?"
    more = ", ..." if len(known) > MANY else ""
    listed = f"there are: {', '.join(known[:MANY])}{more}" if known else "there are none"
    return f"did you mean `{near}`? {listed}" if near else listed
