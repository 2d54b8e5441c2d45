"""PixMo from local JSONL files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fusionkit.blocks.datasets.pixmo import Pixmo
from fusionkit.blocks.datasets.specs import PixmoConfig
from fusionkit.errors import DataError
from fusionkit.geometry import Point, Size
from fusionkit.sample import Turn

URL = "https://example.org/a.jpg"
HASH = "e9b453c0faaa1e15"


def make(root: Path, **parts: list[dict[str, Any]]) -> Path:
    (root / "images").mkdir(parents=True)
    Image.new("RGB", (200, 100)).save(root / "images" / f"{HASH}.jpg")
    Image.new("RGB", (20, 10)).save(root / "images" / hashlib.sha256(URL.encode()).hexdigest(), "PNG")
    for part, rows in parts.items():
        (root / f"{part}.jsonl").write_text("".join(json.dumps({"image_sha256": HASH} | row) + "\n" for row in rows))
    return root


def load(root: Path, *parts: Any, **settings: Any) -> Pixmo:
    return Pixmo(PixmoConfig(root=str(root), parts=parts, **settings))


def test_every_part_becomes_its_question(tmp_path: Path) -> None:
    points = [{"x": 50, "y": 25.5}, {"x": 10, "y": 0}]
    root = make(
        tmp_path,
        cap=[{"caption": "A cat. ", "transcripts": ["uh"]}],
        cap_qa=[{"question": "Why?", "answer": "So."}],
        ask=[{"question": "Who?", "answer": "Me."}],
        count=[{"label": "cats", "count": 3, "points": {"x": [1], "y": [2]}}],
        points=[{"label": "cats", "points": points, "collection_method": "pointing"}, {"label": "dogs", "points": []}],
    )
    dataset = load(root, "points", "cap", "cap_qa", "ask", "count")
    assert [dataset[index].turns[0] for index in range(len(dataset))] == [
        Turn("Point to cats.", (Point(20, 0), Point(100, 25.5)), "point"),
        Turn("Point to dogs.", ("There are none.",), "point"),
        Turn("Describe this picture.", ("A cat.",), "describe"),
        Turn("Why?", ("So.",)),
        Turn("Who?", ("Me.",)),
        Turn("How many cats are there?", ("3",), "count"),
    ]
    assert str(dataset[1].provenance) == f"{root / 'points.jsonl'}:2"
    assert dataset[0].size == Size(200, 100)


def test_pictures_are_found_by_path_hash_or_address(tmp_path: Path) -> None:
    Image.new("RGB", (5, 5)).save(tmp_path / "own.png")
    rows: list[dict[str, Any]] = [{}, {"image_sha256": None, "image_url": URL}, {"image": "own.png"}]
    root = make(tmp_path, cap=[row | {"caption": "x"} for row in rows])
    dataset = load(root, "cap")
    assert [dataset[index].size for index in range(3)] == [Size(200, 100), Size(20, 10), Size(5, 5)]
    image = dataset[1].open_image
    assert image is not None
    assert image().size == (20, 10)


def test_rotten_links_are_an_error_or_left_out_and_counted(tmp_path: Path) -> None:
    root = make(
        tmp_path,
        cap=[{"caption": "1", "image_sha256": "gone"}, {"caption": "2"}],
        ask=[{"question": "q", "answer": "a"}],
    )
    with pytest.raises(
        DataError,
        match=r"cap\.jsonl:1: no picture for this row in .*images; download it, or set leave_out_missing: true",
    ):
        load(root, "cap", "ask")[0]
    dataset = load(root, "cap", "ask", leave_out_missing=True)
    assert (len(dataset), dataset.left_out) == (2, 1)
    assert [dataset[index].turns[0].text for index in range(2)] == ["2", "a"]
    (root / "images" / f"{HASH}.jpg").unlink()
    with pytest.raises(DataError, match=r"pixmo: none of 3 pictures is in .*images; download them first"):
        load(root, "cap", "ask", leave_out_missing=True)


def test_a_missing_root_says_what_it_should_hold(tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"pixmo: no folder .*nowhere; give its path as `root`, with cap\.jsonl, points\.jsonl and images/",
    ):
        load(tmp_path / "nowhere", "cap", "points")
    with pytest.raises(DataError, match=r"points\.jsonl: no such file; the part `points` of pixmo needs"):
        load(make(tmp_path / "root", cap=[{"caption": "x"}]), "cap", "points")


@pytest.mark.parametrize(
    ("part", "row", "message"),
    [
        ("cap", {"caption": ""}, r"cap\.jsonl:1: 'caption' must be text, got ''"),
        ("ask", {"question": "q"}, r"ask\.jsonl:1: 'answer' must be text, got nothing"),
        ("count", {"label": "x", "count": "3"}, r"count\.jsonl:1: 'count' must be a whole number, got '3'"),
        ("count", {"label": "x", "count": -1}, r"'count' must be a whole number, got -1"),
        ("points", {"label": "x"}, r"points\.jsonl:1: 'points' must be a list of .*, got None"),
        (
            "points",
            {"label": "x", "points": [{"x": 101, "y": 3}]},
            r"a point must have x and y from 0 to 100 percent, got",
        ),
        (
            "points",
            {"label": "x", "points": [[1, 2]]},
            r"a point must have x and y from 0 to 100 percent, got \[1, 2\]",
        ),
    ],
)
def test_broken_rows_name_file_and_line(tmp_path: Path, part: str, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(make(tmp_path, **{part: [row]}), part)[0]
