"""A recipe before it is validated: plain values, each with the place it was written.

Three kinds of node: `Leaf` (a string, number, true, false or null), `Items` (a list) and `Table` (a mapping). A node's
origin is its key's place in a mapping, its own in a list.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Origin:
    """A place in a source; line and column start at 1, and 0 means that the source has no lines (a dict, `--set`)."""

    source: str = ""
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


@dataclass(slots=True)
class Leaf:
    """A scalar. `unset` marks a null that a later source wrote over a block's field: "back to the default"."""

    value: str | int | float | bool | None
    origin: Origin = Origin()
    unset: bool = False


@dataclass(slots=True)
class Items:
    """A list."""

    values: list[Node] = field(default_factory=list)
    origin: Origin = Origin()


@dataclass(slots=True)
class Table:
    """A mapping with string keys, in the order written."""

    entries: dict[str, Node] = field(default_factory=dict)
    origin: Origin = Origin()


Node = Leaf | Items | Table


def plain(node: Node) -> Any:
    """The node as Python's own dicts, lists and scalars."""
    if isinstance(node, Table):
        return {key: plain(value) for key, value in node.entries.items()}
    if isinstance(node, Items):
        return [plain(value) for value in node.values]
    return node.value


def child(node: Node, key: str | int) -> Node | None:
    """The entry or item of that key, or None."""
    if isinstance(node, Table):
        return node.entries.get(str(key))
    if isinstance(node, Items) and str(key).isdecimal() and int(key) < len(node.values):
        return node.values[int(key)]
    return None


def walk(node: Node, address: str) -> Iterator[tuple[str, Node]]:
    """(rest of the address, node) for `node` and every node on the way down, as far as the address exists.

    Keys may hold dots (`train.learning_rates.streams.semantic`): at each node the longest key that exists is taken.
    """
    yield address, node
    parts = address.split(".") if address else []
    while parts:
        for length in range(len(parts), 0, -1):
            below = child(node, ".".join(parts[:length]))
            if below is not None:
                node, parts = below, parts[length:]
                break
        else:
            return
        yield ".".join(parts), node


def locate(node: Node, address: str) -> Node:
    """The node at `address`, or the deepest one on the way to it."""
    *_, (_, found) = walk(node, address)
    return found
