"""Lay one recipe over another.

Mappings merge key by key; lists and scalars replace. A block whose `type` changes is replaced whole. `key: null` removes
the key; on a field of a block it sets the field to null, or back to its default when the block takes no null. In `steps`,
`fusion`, `injectors` and `stages` a new entry goes last, unless it says `before: NAME`; so may an old one that moves.
"""

from __future__ import annotations

import re

from fusionkit.errors import Problem
from fusionkit.recipe.nearest import nearest
from fusionkit.recipe.tree import Leaf, Node, Table

_ORDERED = re.compile(r"streams\.[^.]+\.steps|fusion|injectors|train\.stages")
BEFORE = "before"


def merge(base: Table | None, over: Table, problems: list[Problem], address: str = "") -> Table:
    """A new tree: `base` with `over` laid on it; neither is changed. `base` is None where there was nothing."""
    entries = {} if base is None else dict(base.entries)
    merged = Table(entries, over.origin if base is None else base.origin)
    is_block = "type" in entries or "type" in over.entries
    for key, node in over.entries.items():
        here = f"{address}.{key}" if address else key
        old = entries.get(key)
        if isinstance(node, Table):
            keeps = isinstance(old, Table) and not _changes_type(old, node)
            before = node.entries.get(BEFORE) if _ORDERED.fullmatch(address) else None
            if before is not None:
                node = Table({name: value for name, value in node.entries.items() if name != BEFORE}, node.origin)
            entries[key] = merge(old if keeps and isinstance(old, Table) else None, node, problems, here)
            if before is not None:
                _move(entries, key, before, problems, here)
        elif not (isinstance(node, Leaf) and node.value is None) or base is None:
            entries[key] = node
        elif is_block:
            entries[key] = Leaf(None, node.origin, unset=True)
        elif old is not None:
            del entries[key]
        else:
            problems.append(
                _problem(node, here, f"nothing to remove: there is no '{key}' below", _near(key, list(entries)))
            )
    return merged


def _changes_type(old: Table, new: Table) -> bool:
    type_ = new.entries.get("type")
    if not isinstance(type_, Leaf):
        return False
    before = old.entries.get("type")
    return not isinstance(before, Leaf) or before.value != type_.value


def _move(entries: dict[str, Node], key: str, before: Node, problems: list[Problem], address: str) -> None:
    """Put `key` in front of the entry that `before` names."""
    target = before.value if isinstance(before, Leaf) else None
    others = [name for name in entries if name != key]
    if not isinstance(target, str) or target not in others:
        message = f"must name another entry beside it, got '{target}'"
        problems.append(_problem(before, f"{address}.{BEFORE}", message, _near(str(target), others)))
        return
    moved = {key: entries.pop(key)}
    for name in list(entries):
        if name == target or len(moved) > 1:
            moved[name] = entries.pop(name)
    entries.update(moved)


def _near(name: str, known: list[str]) -> str:
    if near := nearest(name, known):
        return f"did you mean '{near}'?"
    return f"there are {', '.join(known[:12])}" if known else "there are none"


def _problem(node: Node, address: str, message: str, hint: str) -> Problem:
    return Problem(node.origin.source, node.origin.line, node.origin.column, address, message, hint)
