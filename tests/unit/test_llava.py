"""LLaVA's conversations become samples with one picture, several or none; what is wrong is told with its entry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fusionkit.blocks.datasets.llava import Llava
from fusionkit.blocks.datasets.specs import LlavaConfig
from fusionkit.errors import DataError

DATA = Path(__file__).resolve().parents[1] / "conformance" / "data"


def test_pictures_marks_and_kinds() -> None:
    one, two, none = (Llava(LlavaConfig(path=str(DATA / "llava.json")))[index] for index in range(3))
    assert [(turn.question, turn.text, turn.kind) for turn in one.turns] == [
        ("What colour is the thing?", "red", "free"),
        ("How many are there?", "1", "count"),
    ]
    assert two.turns[0].question == "Are they the same?"
    assert two.open_image is not None
    assert [open_image().size for open_image in (two.open_image, *two.more)] == [two.open_image().size] * 2
    assert (none.open_image, none.size, len(none.turns)) == (None, None, 1)
    assert str(none.provenance).endswith("llava.json:3")


def test_lines_will_do(tmp_path: Path) -> None:
    rows = json.loads((DATA / "llava.json").read_text())
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = Llava(LlavaConfig(path=str(tmp_path / "data.jsonl"), images=str(DATA)))
    assert len(found) == 3
    assert found[1].turns == Llava(LlavaConfig(path=str(DATA / "llava.json")))[1].turns


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, "expected a list of conversations"),
        ([3], r":1: expected an object"),
        ([{"conversations": 3}], "'conversations' must be a list of messages, got a number"),
        ([{"conversations": ["hi"]}], r"conversations\[0\] must be an object, got text"),
        ([{"conversations": [{"from": "human", "value": "a"}]}], "questions and answers in turn, got 1 messages"),
        ([{"conversations": [{"from": "gpt", "value": "a"}] * 2}], r"conversations\[0\] must be"),
        ([{"conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a"}]}], "is empty"),
        ([{"image": [1], "conversations": []}], "'image' must be a file name or a list of them"),
        ([{"image": "none.png", "conversations": []}], "none.png"),
    ],
)
def test_what_is_wrong_is_told_with_its_entry(tmp_path: Path, entries: Any, message: str) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        Llava(LlavaConfig(path=str(path)))[0]
