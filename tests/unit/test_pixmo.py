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
from fusionkit.geometry import Box, Point, Size
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
        match=r"cap\.jsonl:1: no picture for this row in .*images; download it, or set fetch: true",
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


def pair(x: int, y: int) -> list[list[bool]]:
    """A mask of two pixels in a picture of 20x10: at (x, y) and to its right."""
    return [[row == y and column in (x, x + 1) for column in range(20)] for row in range(10)]


def test_documents_and_points_with_masks(tmp_path: Path) -> None:
    lists = {"questions": {"question": ["Q1?", "Q2?"], "answer": ["A1", "A2"]}}
    objects = {"questions": [{"question": "Q1?", "answer": "A1"}, {"question": "Q2?", "answer": "A2"}]}
    points = [{"x": 75, "y": 50}, {"x": 25, "y": 50}]
    root = make(
        tmp_path,
        docs=[lists, objects],
        points_eval=[
            {
                "label": "cats",
                "points": points,
                "masks": [pair(15, 5), pair(5, 5)],
                "image_sha256": None,
                "image_url": URL,
            }
        ],
    )
    dataset = load(root, "docs", "points_eval")
    assert dataset[0].turns == dataset[1].turns == (Turn("Q1?", ("A1",)), Turn("Q2?", ("A2",)))
    sample = dataset[2]
    assert sample.turns[0].points == (Point(5, 5), Point(15, 5))
    assert [thing.box for thing in sample.objects] == [Box(5, 5, 7, 6), Box(15, 5, 17, 6)]  # in the order of the points
    for thing, inside, outside in zip(sample.objects, (6.9, 16.9), (7, 17), strict=True):
        assert thing.mask is not None
        assert thing.mask.contains(Point(inside, 5.9))
        assert not thing.mask.contains(Point(outside, 5.9))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"masks": []}, "one mask for each of 1 points, got 0"),
        ({"masks": None}, "one mask for each of 1 points, got null"),
        ({"masks": [[[True]]]}, r"masks\[0\]: a mask of 1x1 pixels for a picture of 200x100"),
        ({"masks": [[[True], []]]}, r"masks\[0\]: mask: expected rows of truth values, all of one length"),
        ({"masks": [[[False] * 200] * 100]}, r"masks\[0\]: the mask covers no pixel"),
        ({"masks": [7]}, r"masks\[0\]: expected rows of truth values, got a number"),
    ],
)
def test_broken_masks_are_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    root = make(tmp_path, points_eval=[{"label": "x", "points": [{"x": 1, "y": 1}]} | row])
    with pytest.raises(DataError, match=rf"points_eval\.jsonl:1: .*{message}"):
        load(root, "points_eval")[0]


def test_broken_documents_are_named(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"questions": {"question": ["a"], "answer": []}},
        {},
        {"questions": [{"question": "a"}]},
    ]
    dataset = load(make(tmp_path, docs=rows), "docs")
    for index, message in enumerate(
        ["as many answers as questions", "must be a list of", r"questions\[0\]: 'answer' must be text, got nothing"]
    ):
        with pytest.raises(DataError, match=rf"docs\.jsonl:{index + 1}: .*{message}"):
            dataset[index]
