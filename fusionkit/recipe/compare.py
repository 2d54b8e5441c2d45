"""Compare two canonical recipes, key by key, in the terms of a recipe."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from fusionkit.recipe.source import shorten

_ORDERED = re.compile(r"streams|streams\.[^.]+\.steps|fusion|injectors|train\.stages")


class Kind(StrEnum):
    """How two recipes differ at an address."""

    ADDED = "added"
    REMOVED = "removed"
    REPLACED = "replaced"
    CHANGED = "changed"
    REORDERED = "reordered"


@dataclass(frozen=True, slots=True)
class Change:
    """One difference: a block added, removed or replaced by another type, a value changed, an order changed."""

    address: str
    kind: Kind
    before: Any
    after: Any

    @property
    def before_text(self) -> str:
        return "-" if self.kind is Kind.ADDED else value_text(self.before)

    @property
    def after_text(self) -> str:
        return "-" if self.kind is Kind.REMOVED else value_text(self.after)


def changes(before: Any, after: Any, address: str = "") -> Iterator[Change]:
    """What differs, in the order of `before`, then what is new."""
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        yield from _value_changes(before, after, address)
        return
    if "type" in before and "type" in after and before["type"] != after["type"]:
        yield Change(address, Kind.REPLACED, before, after)
        return
    common = [key for key in before if key in after]
    if _ORDERED.fullmatch(address) and common != (there := [key for key in after if key in before]):
        yield Change(address, Kind.REORDERED, common, there)
    for key, value in before.items():
        here = f"{address}.{key}" if address else key
        if key in after:
            yield from changes(value, after[key], here)
        else:
            yield Change(here, Kind.REMOVED, value, None)
    for key, value in after.items():
        if key not in before:
            yield Change(f"{address}.{key}" if address else key, Kind.ADDED, None, value)


def _value_changes(before: Any, after: Any, address: str) -> Iterator[Change]:
    if _are_alike(before, after):
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from changes(old, new, f"{address}.{index}")
    # True == 1 in Python, but not in a recipe.
    elif before != after or type(before) is not type(after):
        kind = Kind.ADDED if before is None else Kind.REMOVED if after is None else Kind.CHANGED
        yield Change(address, kind, before, after)


def _are_alike(before: Any, after: Any) -> bool:
    """Whether both are lists of as many mappings, which are then compared one by one."""
    if not isinstance(before, list) or not isinstance(after, list) or len(before) != len(after):
        return False
    return all(isinstance(item, Mapping) for item in (*before, *after))


def value_text(value: Any) -> str:
    """A value as a person reads it in a table: blocks by their type."""
    if isinstance(value, Mapping) and isinstance(value.get("type"), str):
        return str(value["type"])
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return shorten(f"[{', '.join(value)}]")
    return value if isinstance(value, str) else shorten(json.dumps(value, ensure_ascii=False))
