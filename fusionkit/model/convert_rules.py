"""What a rule of a conversion table does to the tensors it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fusionkit.errors import CheckpointError
from fusionkit.model.convert_table import How, Rule
from fusionkit.ops.mixing import merge_repeated_logits
from fusionkit.ops.released import from_released

Shapes = Sequence[tuple[int, ...]]


def apply(rule: Rule, taken: Sequence[Tensor], shapes: Shapes, token_ids: Mapping[str, int]) -> list[Tensor]:
    """The tensors a rule gives, in its order; `shapes` are those the model wants.

    Raises CheckpointError when what is taken cannot become what is wanted.
    """
    if rule.how == "rows":
        return [_rows(rule, taken, token_ids)]
    if rule.how == "merge_logits":
        return [merge_repeated_logits(rule.layers or (), taken[0].double())[1]]
    return _SIMPLE[rule.how](taken, shapes)


def _copy(taken: Sequence[Tensor], shapes: Shapes) -> list[Tensor]:
    return list(taken)


def _reshape(taken: Sequence[Tensor], shapes: Shapes) -> list[Tensor]:
    """The same numbers in the same order in another shape."""
    return [taken[0].reshape(shapes[0])]


def _patches(taken: Sequence[Tensor], shapes: Shapes) -> list[Tensor]:
    """A matrix over (row, column, channel) of a patch as the kernel of a convolution: [D, h w c] -> [D, c, h, w]."""
    _, channels, rows, columns = shapes[0]
    return [taken[0].unflatten(1, (rows, columns, channels)).permute(0, 3, 1, 2)]


def _split(taken: Sequence[Tensor], shapes: Shapes) -> list[Tensor]:
    """Parts along the first axis, as long as what is wanted of each."""
    sizes = [shape[0] for shape in shapes]
    if sum(sizes) != taken[0].shape[0]:
        raise CheckpointError(f"has {taken[0].shape[0]} rows, to be split into {sizes}")
    return list(taken[0].split(sizes))


def _orthogonal(taken: Sequence[Tensor], shapes: Shapes) -> list[Tensor]:
    """torch's orthogonal parametrisation (original, base) as ours (skew, base); in fp32 at least."""
    original, base = (part.double() for part in taken)
    ours = from_released(original, base)
    return [ours["skew"], ours["base"]]


def _rows(rule: Rule, taken: Sequence[Tensor], token_ids: Mapping[str, int]) -> Tensor:
    """An embedding whose added tokens are in a table of their own, as one table with their rows where our ids are."""
    rows, added = taken
    tokens = rule.tokens or ()
    if len(added) < len(tokens):
        raise CheckpointError(f"has {len(added)} rows for added tokens, {len(tokens)} are named")
    if unknown := [token for token in tokens if token not in token_ids]:
        raise CheckpointError(f"the recipe's model adds no token {', '.join(unknown)}")
    places = torch.tensor([token_ids[token] for token in tokens], device=rows.device)
    return rows.index_copy(0, places, added[: len(tokens)].to(rows.dtype))


_SIMPLE: Mapping[How, Callable[[Sequence[Tensor], Shapes], list[Tensor]]] = {
    "copy": _copy,
    "reshape": _reshape,
    "patches": _patches,
    "split": _split,
    "orthogonal": _orthogonal,
}
