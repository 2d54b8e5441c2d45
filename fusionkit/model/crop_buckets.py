"""Crops padded up to one of a few numbers, so that what was captured for that number can be replayed.

No crop's result depends on the crops beside it (the conformance kit holds every block to that), so padding is cut off
again and changes nothing but the order in which a device rounds. C crops.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fusionkit.errors import ShapeError
from fusionkit.ops.tokens import Tokens

Tree = Mapping[str, Tokens | Tensor]
"""Tensors by name, alone or as tokens; all have the crops as their first axis."""


def default_buckets(most: int) -> tuple[int, ...]:
    """Powers of two below the most crops of a picture, and that number: 13 gives 1, 2, 4, 8, 13."""
    powers = [1 << power for power in range(most.bit_length()) if 1 << power < most]
    return (*powers, max(most, 1))


def bucket_for(crops: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds so many crops; the largest if none does."""
    return next((bucket for bucket in buckets if bucket >= crops), buckets[-1])


# ------------------------------------------------------------------------------------------------- trees
def crops_of(tree: Tree) -> int:
    """How many crops all tensors have. Raises ShapeError when they differ."""
    counts = {name: len(tensor) for name, value in tree.items() for tensor in _tensors(value)}
    if len(set(counts.values())) > 1:
        raise ShapeError(f"expected as many crops of every stream, got {counts}")
    return next(iter(counts.values()), 0)


def tensors_of(tree: Tree) -> list[Tensor]:
    return [tensor for value in tree.values() for tensor in _tensors(value)]


def with_tensors(tree: Tree, tensors: Iterable[Tensor]) -> dict[str, Tokens | Tensor]:
    """The same tree with other tensors, in the order of `tensors_of`."""
    given = iter(tensors)
    found: dict[str, Tokens | Tensor] = {}
    for name, value in tree.items():
        if isinstance(value, Tensor):
            found[name] = next(given)
        else:
            fields: dict[str, Any] = {field: next(given) for field in _fields(value)}
            found[name] = value._replace(**fields)
    return found


def signature(tree: Tree) -> Hashable:
    """All but the numbers and the count of crops: names, places, and each tensor's shape, type and device."""

    def of(value: Tokens | Tensor) -> Hashable:
        each = tuple((tensor.shape[1:], tensor.dtype, tensor.device) for tensor in _tensors(value))
        if isinstance(value, Tensor):
            return each
        return (*each, _fields(value), value.grid, value.frame, value.copies, value.interleaved)

    return tuple((name, of(value)) for name, value in tree.items())


def split(tree: Tree, most: int) -> list[dict[str, Tokens | Tensor]]:
    """The tree in parts of at most `most` crops."""
    columns = [torch.split(tensor, most) for tensor in tensors_of(tree)]
    return [with_tensors(tree, row) for row in zip(*columns, strict=True)]


def join(parts: Sequence[Tree]) -> dict[str, Tokens | Tensor]:
    """Parts of one tree, in order."""
    columns = zip(*(tensors_of(part) for part in parts), strict=True)
    return with_tensors(parts[0], [torch.cat(column) for column in columns])


def pad_into(buffers: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
    """Copy crops to the front of larger buffers; zeros behind them."""
    for buffer, tensor in zip(buffers, tensors, strict=True):
        buffer[: len(tensor)].copy_(tensor)
        buffer[len(tensor) :].zero_()


def cut_out(tree: Tree, crops: int) -> dict[str, Tokens | Tensor]:
    """Copies of the first crops: what the buffers hold later does not reach them."""
    return with_tensors(tree, [tensor[:crops].clone() for tensor in tensors_of(tree)])


def _fields(tokens: Tokens) -> tuple[str, ...]:
    return tuple(name for name in ("x_BND", "valid_BN", "coverage_BN") if getattr(tokens, name) is not None)


def _tensors(value: Tokens | Tensor) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [getattr(value, name) for name in _fields(value)]
