"""`--set ADDRESS=VALUE`: one change to a recipe, merged like a recipe that holds only this value.

The address is the one errors print; items of a list are numbered from 0. The value is written as in a recipe file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from fusionkit.errors import Problem, RecipeSyntaxError, RecipeValidationError
from fusionkit.recipe.merge import merge
from fusionkit.recipe.source import shorten
from fusionkit.recipe.tree import Items, Leaf, Node, Origin, Table, child

DOTTED = ("learning_rates",)
"""Mappings whose keys are addresses: what follows in an address is one key."""


def override(tree: Table, changes: Iterable[str]) -> Table:
    """The recipe with all changes made, in order.

    Raises: RecipeSyntaxError for a change that is not ADDRESS=VALUE, RecipeValidationError for one that does not apply.
    """
    for change in changes:
        name = f"--set {shorten(change)}"
        address, equals, text = change.partition("=")
        parts = address.strip().split(".")
        if not equals or not all(parts):
            raise RecipeSyntaxError([Problem(name, 0, 0, "", "is not ADDRESS=VALUE", "for example train.seed=1")])
        problems: list[Problem] = []
        value = _value(text, name)
        overlay = _overlay(tree, parts, value, Origin(name), problems, "")
        if isinstance(overlay, Table):
            tree = merge(tree, overlay, problems)
        if problems:
            raise RecipeValidationError(problems)
    return tree


def _value(text: str, name: str) -> Node:
    # Imported here for the same reason as in `locate`.
    from fusionkit.recipe.yaml_subset import parse_value

    if not text.strip():
        raise RecipeSyntaxError([Problem(name, 0, 0, "", "has no value", "write null to remove it, '' for no text")])
    try:
        return _moved(parse_value(text, name), Origin(name))
    except RecipeSyntaxError as error:
        # The change itself is printed, so a line and column in it would only confuse.
        raise RecipeSyntaxError(replace(problem, line=0, column=0) for problem in error.problems) from error


def _moved(node: Node, origin: Origin) -> Node:
    """The node with every origin replaced: positions in a command line help nobody."""
    if isinstance(node, Table):
        return Table({key: _moved(value, origin) for key, value in node.entries.items()}, origin)
    if isinstance(node, Items):
        return Items([_moved(value, origin) for value in node.values], origin)
    return Leaf(node.value, origin)


def _overlay(
    node: Node | None, parts: list[str], value: Node, origin: Origin, problems: list[Problem], address: str
) -> Node:
    """What to lay over `node` so that `value` stands at the end of `parts`."""
    if not parts:
        return value
    if isinstance(node, Items):
        return _changed_items(node, parts, value, origin, problems, address)
    key, rest = _split(node, parts, address)
    below = child(node, key) if node is not None else None
    here = f"{address}.{key}" if address else key
    return Table({key: _overlay(below, rest, value, origin, problems, here)}, origin)


def _changed_items(
    node: Items, parts: list[str], value: Node, origin: Origin, problems: list[Problem], address: str
) -> Node:
    """A list has no keys to merge by, so the overlay is the whole list with one item changed."""
    below = child(node, parts[0])
    here = f"{address}.{parts[0]}"
    if below is None:
        count = len(node.values)
        wanted = f"an item of the list, 0 to {count - 1}" if count else "absent: the list is empty"
        problems.append(Problem(origin.source, 0, 0, here, f"must be {wanted}"))
        return node
    changed = _overlay(below, parts[1:], value, origin, problems, here)
    if isinstance(below, Table) and isinstance(changed, Table):
        changed = merge(Table({"item": below}), Table({"item": changed}), problems, address).entries["item"]
    values = list(node.values)
    values[int(parts[0])] = changed
    return Items(values, origin)


def _split(node: Node | None, parts: list[str], address: str) -> tuple[str, list[str]]:
    """The key that the next parts name, and the rest."""
    if address.rpartition(".")[2] in DOTTED:
        return ".".join(parts), []
    if isinstance(node, Table):
        for length in range(len(parts), 1, -1):
            if ".".join(parts[:length]) in node.entries:
                return ".".join(parts[:length]), parts[length:]
    return parts[0], parts[1:]
