"""Bad samples stop a training unless the recipe says otherwise; then each is listed and another takes its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import fusionkit
from fusionkit.data.careful import MOST_IN_A_ROW, Careful, skipped
from fusionkit.data.mixture import Mixture
from fusionkit.data.read import open_jsonl
from fusionkit.errors import DataError

QUESTION = [{"from": "human", "value": "what is it"}, {"from": "gpt", "value": "red"}]


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Four rows: good, a broken picture, a row that is no JSON, good."""
    Image.new("RGB", (24, 24), "red").save(tmp_path / "good.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "good.png").read_bytes()[:40])
    rows = [json.dumps({"image": name, "conversations": QUESTION}) for name in ("good.png", "broken.png", "good.png")]
    (tmp_path / "data.jsonl").write_text("\n".join([rows[0], rows[1], "{", rows[2]]) + "\n", encoding="utf-8")
    return tmp_path / "data.jsonl"


def test_what_takes_a_bad_samples_place_depends_on_the_position_alone(mixed: Path, tmp_path: Path) -> None:
    careful = Careful(Mixture([open_jsonl(mixed)], [1.0], 16, seed=0), tmp_path / "skipped.jsonl")
    seen = [str(careful[position].provenance) for position in range(16)]
    assert {Path(place).name for place in seen} == {"data.jsonl:1", "data.jsonl:4"}
    again = Careful(Mixture([open_jsonl(mixed)], [1.0], 16, seed=0), tmp_path / "skipped.jsonl")
    assert [str(again[position].provenance) for position in (9, 3, 15)] == [seen[9], seen[3], seen[15]]
    reasons = skipped(tmp_path / "skipped.jsonl")
    assert len(reasons) == 2
    assert any("data.jsonl:3" in reason for reason in reasons)
    assert any("broken.png" in reason for reason in reasons)


def test_nothing_but_bad_samples_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("{\n", encoding="utf-8")
    careful = Careful(Mixture([open_jsonl(tmp_path / "data.jsonl")], [1.0], 4, seed=0), tmp_path / "skipped.jsonl")
    with pytest.raises(DataError, match=f"{MOST_IN_A_ROW} samples in a row cannot be used"):
        careful[0]


def test_a_recipe_that_skips_trains_and_says_what_it_left_out(mixed: Path, tmp_path: Path) -> None:
    from fusionkit.train.run import train

    changes = (
        "train.stages.encoders=null",
        "train.stages.answers.steps=2",
        "train.global_batch_size=2",
        f"train.data=[{{type: jsonl, path: '{mixed}'}}]",
    )
    said: list[str] = []
    stopping = fusionkit.load_recipe("builtin:tiny_demo", set=changes)
    with pytest.raises(DataError, match=r"data\.jsonl"):
        train(stopping, tmp_path / "stops")
    skipping = fusionkit.load_recipe("builtin:tiny_demo", set=(*changes, "train.bad_samples=skip"))
    folder = train(skipping, tmp_path / "skips", say=said.append).folder
    assert said[0].startswith("2 samples could not be used and were left out, listed in skipped.jsonl: ")
    assert (folder / "skipped.jsonl").exists()
