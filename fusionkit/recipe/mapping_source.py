"""Read a recipe given as a Python mapping into the same tree as a file's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fusionkit.errors import Problem, RecipeSyntaxError
from fusionkit.recipe.source import CONTROL, MAX_DEPTH, MAX_NODES, shorten
from fusionkit.recipe.tree import Items, Leaf, Node, Origin, Table


def from_mapping(source: Mapping[str, Any], name: str) -> Table:
    """The tree of a recipe given as a Python mapping of strings, numbers, booleans, None, lists and mappings.

    Raises: RecipeSyntaxError, with all faults found.
    """
    reader = _MappingReader(name)
    node = reader.node(source, "", 1)
    if reader.problems:
        raise RecipeSyntaxError(reader.problems)
    if not isinstance(node, Table):
        message = f"a recipe is a mapping of keys to values, got {type(source).__name__}"
        raise RecipeSyntaxError([Problem(name, 0, 0, "", message)])
    return node


class _MappingReader:
    def __init__(self, name: str) -> None:
        self.problems: list[Problem] = []
        self._origin = Origin(name)
        self._nodes = 0

    def node(self, value: Any, address: str, depth: int) -> Node:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            message = f"more than {MAX_NODES} values"
            raise RecipeSyntaxError([*self.problems, Problem(self._origin.source, 0, 0, address, message)])
        if value is None or type(value) in (str, bool, int, float):
            self._check(value, address)
            return Leaf(value, self._origin)
        if depth > MAX_DEPTH:
            self._problem(address, f"nested deeper than {MAX_DEPTH} levels")
        elif isinstance(value, Mapping):
            return self._table(value, address, depth)
        elif isinstance(value, list | tuple):
            below = [self.node(item, _join(address, index), depth + 1) for index, item in enumerate(value)]
            return Items(below, self._origin)
        else:
            self._problem(
                address,
                f"must be a string, number, boolean, None, list or dict, got {type(value).__name__}",
            )
        return Leaf(None, self._origin)

    def _table(self, value: Mapping[Any, Any], address: str, depth: int) -> Table:
        table = Table({}, self._origin)
        for key, below in value.items():
            if isinstance(key, str):
                table.entries[key] = self.node(below, _join(address, key), depth + 1)
            else:
                self._problem(address, f"key {shorten(repr(key))} is not a string")
        return table

    def _check(self, value: Any, address: str) -> None:
        if isinstance(value, str) and (bad := CONTROL.search(value)):
            self._problem(address, f"text holds the control character U+{ord(bad.group()):04X}", "remove it")
        elif isinstance(value, float) and not math.isfinite(value):
            self._problem(address, f"{value} is no number a recipe can hold")
        elif type(value) is int and abs(value) > 2**63 - 1:
            self._problem(address, "a number that does not fit in 64 bits")

    def _problem(self, address: str, message: str, hint: str = "") -> None:
        self.problems.append(Problem(self._origin.source, 0, 0, address, message, hint))


def _join(address: str, key: str | int) -> str:
    return f"{address}.{key}" if address else str(key)
