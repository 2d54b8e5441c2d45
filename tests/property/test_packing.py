"""The packer: every question once, whole, in a row that is not too long, and never dearer than padding."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from fusionkit.data.packing import Packing, arrange, cost
from fusionkit.ops.packing import Packed

IMAGE, PAD = 7, 0
lengths = st.lists(st.integers(1, 60), min_size=1, max_size=24)


@given(lengths, st.integers(0, 200), st.integers(1, 200))
def test_every_item_stands_once_in_a_row_that_is_not_too_long(items: list[int], more: int, width: int) -> None:
    limit = max(items) + more
    rows = arrange(items, limit, width)
    assert sorted(index for row in rows for index in row) == list(range(len(items)))
    filled = [sum(items[index] for index in row) for row in rows]
    assert max(filled) <= limit
    assert cost(len(rows), max(filled), width) <= cost(len(items), max(items), width)
    assert rows == arrange(items, limit, width)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(64, 4096))
def test_equal_items_are_left_where_they_are(length: int, count: int, width: int) -> None:
    """Without padding there is nothing to gain, and attention over longer rows costs more."""
    assert arrange([length] * count, 100 * length, width) == [[index] for index in range(count)]


@st.composite
def batches(draw: Any) -> tuple[dict[str, Any], int]:
    """Rows of samples with pictures or none and one question or several, padded as the processor pads them."""
    rows: list[list[int]] = []
    labels: list[list[int]] = []
    turns, visual = [], []
    for number in range(draw(st.integers(1, 6))):
        pictures = draw(st.integers(0, 2))
        begin = [2] + [IMAGE] * (3 * pictures) + draw(st.lists(st.integers(10, 12), max_size=3))
        for _ in range(draw(st.integers(1, 4))):
            question = draw(st.lists(st.integers(10, 12), min_size=1, max_size=6))
            answer = draw(st.lists(st.integers(20, 40), min_size=1, max_size=8))
            rows.append([*begin, *question, *answer])
            labels.append([-100] * len(begin + question) + answer)
            turns.append((number, SimpleNamespace()))
            visual += [100 * number + index for index in range(3 * pictures)]
    longest = max(map(len, rows))
    batch = {
        "input_ids": torch.tensor([row + [PAD] * (longest - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows]),
        "labels": torch.tensor([row + [-100] * (longest - len(row)) for row in labels]),
        "visual_index": torch.tensor(visual, dtype=torch.long),
        "turns": turns,
        "samples": ["kept"],
    }
    return batch, longest + draw(st.integers(0, 80))


def paths(packed: dict[str, Any]) -> list[tuple[list[int], list[int], list[int]]]:
    """Ids, labels and visual tokens along the path of every question, read back through `previous`."""
    rows = Packed.of(packed["packed"])
    previous, positions = rows.previous(), rows.positions()
    shown = {}
    for place, index in zip(
        (packed["input_ids"] == IMAGE).nonzero().tolist(), packed["visual_index"].tolist(), strict=True
    ):
        shown[tuple(place)] = index
    found = []
    for row, (samples, turns) in enumerate(zip(rows.sample_BT.tolist(), rows.turn_BT.tolist(), strict=True)):
        for place, key in enumerate(zip(samples, turns, strict=True)):
            following = (samples[place + 1], turns[place + 1]) if place + 1 < len(samples) else None
            several = key[1] == 0 and any(s == key[0] and t > 0 for s, t in zip(samples, turns, strict=True))
            if key[0] < 0 or key == following or several:
                continue
            walked, at = [], place
            while at >= 0:
                walked.append(at)
                at = int(previous[row, at])
            walked.reverse()
            assert positions[row, walked].tolist() == list(range(len(walked)))
            allowed = rows.allowed()[row, 0, place].nonzero()[:, 0].tolist()
            assert allowed == walked
            found.append(
                (
                    packed["input_ids"][row, walked].tolist(),
                    packed["labels"][row, walked].tolist(),
                    [shown[row, at] for at in walked if (row, at) in shown],
                )
            )
    return found


@given(batches(), st.integers(1, 200))
def test_what_was_packed_can_be_read_back(given: tuple[dict[str, Any], int], width: int) -> None:
    batch, limit = given
    packed = Packing(limit, width, IMAGE, PAD)(batch)
    assert packed["input_ids"].shape[1] <= limit
    visual = iter(batch["visual_index"].tolist())
    expected = []
    for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        length = int(mask.sum())
        row = ids[:length].tolist()
        expected.append((row, labels[:length].tolist(), [next(visual) for token in row if token == IMAGE]))
    assert sorted(paths(packed)) == sorted(expected)
    # What begins a question has no loss, or it would be foretold by what happens to stand before it.
    rows = Packed.of(packed["packed"])
    begins = (rows.sample_BT.diff(dim=1) != 0) | (rows.turn_BT.diff(dim=1) != 0)
    assert bool((packed["labels"][:, 1:][begins] == -100).all())
    assert bool((packed["labels"][:, 0] == -100).all())
    # No padding but at the end of a row, and none in all rows.
    assert int(packed["attention_mask"].sum(1).max()) == packed["input_ids"].shape[1]
