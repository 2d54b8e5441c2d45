"""Tables that follow from shapes alone, computed once per shape and never stored in a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import nn

T = TypeVar("T")


class KeepsTables(nn.Module):
    """Base of modules that compute tables (rotary phases, masks) on first use and keep them.

    They are no buffers: a module built on the meta device and moved with `to_empty` would hold garbage. Whatever
    moves or casts the module drops them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._tables: dict[Hashable, Any] = {}

    def table(self, key: Hashable, make: Callable[[], T]) -> T:
        """The table for `key`, which must name everything `make` depends on, the device included."""
        if torch.compiler.is_compiling():
            # In a graph the table is a few fusable operations, and a fake tensor must never be kept.
            return make()
        if key not in self._tables:
            # Made outside inference mode, so that a table first used there can serve training later.
            with torch.inference_mode(False), torch.no_grad():
                self._tables[key] = make()
        kept: T = self._tables[key]
        return kept

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        self._tables.clear()
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
