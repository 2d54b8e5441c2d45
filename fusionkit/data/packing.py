"""Packing: the rows of a batch laid into fewer and fuller ones.

What a sample's questions have in common, its pictures above all, stands there once, and each question goes on from it
(see `fusionkit.ops.packing`). Samples, answers and their number are those of the batch: packing changes what is
computed, not what is learnt.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from fusionkit.errors import UsageError
from fusionkit.model.processing import IGNORED, FusionProcessor
from fusionkit.ops.packing import PADDING


@dataclass(frozen=True, slots=True)
class _Row:
    """A question with its answer, as the processor made it."""

    sample: int
    ids: list[int]
    labels: list[int]
    visual: list[int]


@dataclass(frozen=True, slots=True)
class _Unit:
    """A sample with some or all of its questions; `turns` is the number of the question that a token belongs to, 0 if shared."""

    ids: list[int]
    labels: list[int]
    turns: list[int]
    visual: list[int]


def arrange(lengths: Sequence[int], limit: int, width: int) -> list[list[int]]:
    """Which items stand together in a row, no row longer than `limit`; every item once, in rising order.

    For every number of rows the items are dealt out, the longest first, each to the row that is shortest by then. Of
    these arrangements the cheapest is taken, and one item a row is among them: packing never costs more than padding.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    longest = max(lengths, default=0)
    best, least = [[index] for index in range(len(lengths))], cost(len(lengths), longest, width)
    rows = max(1, -(-sum(lengths) // limit))
    while rows < len(lengths) and cost(rows, longest, width) < least:
        dealt = _deal(order, lengths, rows, limit)
        if dealt is not None:
            needed = cost(rows, max(sum(lengths[index] for index in row) for row in dealt), width)
            if needed < least:
                best, least = dealt, needed
        rows += 1
    return sorted(sorted(row) for row in best)


def cost(rows: int, longest: int, width: int) -> int:
    """What a decoder of this width computes over padded rows, in units of 4 * width FLOPs per block.

    Equation: R T (6 E + T), from 24 E^2 per token in the maps of a block (four of attention, three of the feed-forward
    part) and 4 E T in its attention, which is computed over whole rows and then masked.
    """
    return rows * longest * (6 * width + longest)


def _deal(order: Sequence[int], lengths: Sequence[int], rows: int, limit: int) -> list[list[int]] | None:
    """The items, in this order, each in the row that is shortest by then; None where one does not fit."""
    dealt: list[list[int]] = [[] for _ in range(rows)]
    filled = [(0, number) for number in range(rows)]
    for index in order:
        length, number = filled[0]
        if length + lengths[index] > limit:
            return None
        heapq.heapreplace(filled, (length + lengths[index], number))
        dealt[number].append(index)
    return dealt


@dataclass(frozen=True, slots=True)
class Packing:
    """Packs the rows of a batch for training, as `FusionProcessor.batch` makes it, into rows of at most `limit` tokens.

    `width` is the decoder's. In the batch that comes out `packed` [B, T, 2] has the numbers that `Packed` reads; `turns`
    is left out, because rows are no single questions any more.
    """

    limit: int
    width: int
    image_id: int
    padding_id: int

    @classmethod
    def of(cls, processor: FusionProcessor) -> Packing:
        """For the batches of a processor; raises UsageError when its recipe has no language model."""
        plan = processor.plan
        if plan.language_model is None:
            raise UsageError("the recipe has no language_model, so there are no rows to pack")
        padding: Any = processor.tokenizer.pad_token_id
        return cls(plan.recipe.sequence_length, plan.language_model.width, processor.image_token_id, padding)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        units = [
            unit
            for _, rows in groupby(_rows(batch, self.image_id), key=lambda row: row.sample)
            for unit in _units(list(rows), self.limit, self.image_id)
        ]
        arranged = arrange([len(unit.ids) for unit in units], self.limit, self.width)
        layout = [[units[index] for index in row] for row in arranged]
        ids = [[token for unit in row for token in unit.ids] for row in layout]
        samples = [[number for number, unit in enumerate(row) for _ in unit.ids] for row in layout]
        turns = [[turn for unit in row for turn in unit.turns] for row in layout]
        made: dict[str, Any] = {name: value for name, value in batch.items() if name != "turns"}
        made["input_ids"] = _padded(ids, self.padding_id)
        made["attention_mask"] = _padded([[1] * len(row) for row in ids], 0)
        made["labels"] = _padded([[label for unit in row for label in unit.labels] for row in layout], IGNORED)
        made["packed"] = torch.stack((_padded(samples, PADDING), _padded(turns, PADDING)), dim=-1)
        if "visual_index" in batch:
            shown = [index for row in layout for unit in row for index in unit.visual]
            made["visual_index"] = torch.tensor(shown, dtype=torch.long)
        return made


def _rows(batch: Mapping[str, Any], image_id: int) -> Iterator[_Row]:
    """The rows of a batch without their padding."""
    visual = iter(batch["visual_index"].tolist() if "visual_index" in batch else ())
    columns = zip(
        batch["turns"],
        batch["input_ids"].tolist(),
        batch["labels"].tolist(),
        batch["attention_mask"].sum(1).tolist(),
        strict=True,
    )
    for (sample, _), ids, labels, length in columns:
        shown = [next(visual) for token in ids[:length] if token == image_id]
        yield _Row(sample, ids[:length], labels[:length], shown)


def _units(rows: Sequence[_Row], limit: int, image_id: int) -> Iterator[_Unit]:
    """A sample's questions behind what they share; in more than one unit where they would be longer than `limit`."""
    shared = _shared(rows, image_id)
    if shared == 0:
        yield from (_Unit(row.ids, row.labels, [0] * len(row.ids), row.visual) for row in rows)
        return
    waiting: list[_Row] = []
    for row in rows:
        length = shared + sum(len(each.ids) - shared for each in (*waiting, row))
        if waiting and length > limit:
            yield _joined(waiting, shared)
            waiting = []
        waiting.append(row)
    yield _joined(waiting, shared)


def _shared(rows: Sequence[_Row], image_id: int) -> int:
    """How many tokens all these questions begin with; 0 where they do not all show the same pictures there.

    At least one token before the answer stays each question's own: it carries no loss, so what stands before it in the
    packed row has nothing to foretell.
    """
    if len(rows) < 2 or any(row.visual != rows[0].visual for row in rows):
        return 0
    most = min(next((at for at, label in enumerate(row.labels) if label != IGNORED), len(row.ids)) for row in rows) - 1
    same = next((at for at in range(max(0, most)) if any(row.ids[at] != rows[0].ids[at] for row in rows)), max(0, most))
    return 0 if any(image_id in row.ids[same:] for row in rows) else same


def _joined(rows: Sequence[_Row], shared: int) -> _Unit:
    first = rows[0]
    ids, labels, turns = first.ids[:shared], first.labels[:shared], [0] * shared
    for number, row in enumerate(rows, start=1):
        ids = ids + row.ids[shared:]
        labels = labels + row.labels[shared:]
        turns = turns + [number] * (len(row.ids) - shared)
    return _Unit(ids, labels, turns, first.visual)


def _padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows], dtype=torch.long)
