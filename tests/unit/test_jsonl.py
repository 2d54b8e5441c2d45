"""The JSONL dataset: what it reads, and one clear line with file and row for everything it does not."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fusionkit.blocks.datasets.jsonl import JsonlDataset
from fusionkit.blocks.datasets.specs import JsonlConfig, SyntheticScenesConfig
from fusionkit.blocks.datasets.synthetic_scenes import SyntheticScenes
from fusionkit.data.write import write_samples
from fusionkit.errors import DataError
from fusionkit.geometry import Box, Point, Size
from fusionkit.sample import Turn


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (64, 48), (10, 200, 30)).save(tmp_path / "a.png")
    return tmp_path


def ask(question: str = "q", answer: str = "a") -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def write(folder: Path, *rows: Any) -> JsonlDataset:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "d.jsonl").write_text("\n".join(lines) + "\n")
    return JsonlDataset(JsonlConfig(path=str(folder / "d.jsonl")))


def test_reads_boxes_and_points_in_order(folder: Path) -> None:
    row = {
        "id": "cat-1",
        "meta": {"anything": 1},
        "image": "a.png",
        "conversations": [
            *ask("<image>\nWhere are they?", "Here <box> and <box>."),
            *ask("Point to it.", "<point>"),
            *ask("How many?", "2"),
            *ask("Why?", "Because 2 are there."),
        ],
        "boxes": [[1, 2, 30, 40], [5.5, 6, 70, 50]],
        "points": [[10, 20.25]],
    }
    sample = write(folder, row)[0]
    assert sample.size == Size(64, 48)
    assert str(sample.provenance) == f"{folder / 'd.jsonl'}:1"
    assert sample.turns == (
        Turn("Where are they?", ("Here ", Box(1, 2, 30, 40), " and ", Box(5.5, 6, 70, 50), "."), "box"),
        Turn("Point to it.", (Point(10, 20.25),), "point"),
        Turn("How many?", ("2",), "count"),
        Turn("Why?", ("Because 2 are there.",), "free"),
    )
    assert sample.open_image is not None
    assert sample.open_image().getpixel((3, 3)) == (10, 200, 30)


def test_boxes_are_in_the_picture_as_seen(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48)).save(folder / "turned.jpg", exif=exif)
    row = {"image": "turned.jpg", "conversations": ask("q", "<box>"), "boxes": [[0, 50, 48, 64]]}
    sample = write(folder, row)[0]
    assert sample.size == Size(48, 64)
    assert sample.open_image is not None
    assert sample.open_image().size == (48, 64)


def test_pictures_are_relative_to_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "photos").mkdir()
    (folder / "a.png").rename(folder / "photos" / "b.png")
    monkeypatch.chdir("/")
    dataset = write(
        folder,
        {"image": "photos/b.png", "conversations": ask()},
        {"image": str(folder / "photos/b.png"), "conversations": ask()},
    )
    assert [dataset[index].size for index in range(2)] == [Size(64, 48)] * 2


def test_questions_without_a_picture(folder: Path) -> None:
    sample = write(folder, {"conversations": ask("What is 2 + 2?", "4")})[0]
    assert (sample.open_image, sample.size) == (None, None)
    assert sample.turns == (Turn("What is 2 + 2?", ("4",), "count"),)


def test_line_numbers_count_blank_lines_and_a_bom_is_passed_over(folder: Path) -> None:
    row = json.dumps({"image": "a.png", "conversations": ask("größe?", "ja")}, ensure_ascii=False)
    (folder / "d.jsonl").write_bytes(b"\xef\xbb\xbf" + f"{row}\r\n\r\n   \n{row}".encode())
    dataset = JsonlDataset(JsonlConfig(path=str(folder / "d.jsonl")))
    assert [dataset[index].provenance.row for index in range(len(dataset))] == [1, 4]
    assert dataset[1].turns[0].question == "größe?"


def test_samples_and_dataset_travel_to_workers(folder: Path) -> None:
    dataset = pickle.loads(pickle.dumps(write(folder, {"image": "a.png", "conversations": ask()})))
    sample = pickle.loads(pickle.dumps(dataset[0]))
    assert sample.open_image().size == (64, 48)


def test_written_scenes_read_back_the_same(tmp_path: Path) -> None:
    scenes = SyntheticScenes(SyntheticScenesConfig(samples=6, kinds={"box": 1.0, "point": 1.0, "count": 1.0}))
    originals = [scenes[index] for index in range(6)]
    path = write_samples(originals, tmp_path / "out")
    dataset = JsonlDataset(JsonlConfig(path=str(path)))
    for index, original in enumerate(originals):
        copy = dataset[index]
        assert copy.size == original.size
        assert copy.open_image is not None
        assert original.open_image is not None
        assert copy.open_image().tobytes() == original.open_image().tobytes()
        for turn, first in zip(copy.turns, original.turns, strict=True):
            assert (turn.question, turn.kind, turn.text) == (first.question, first.kind, first.text)
            assert turn.boxes == tuple(replace(box, label="") for box in first.boxes)
            assert turn.points == tuple(replace(point, label="") for point in first.points)


BOX = {"image": "a.png", "conversations": ask("q", "<box>")}
BROKEN = {
    "not json": ("{'image': 1}", r"not valid JSON at column 2: Expecting property name"),
    "cut off": ('{"image": "a.png", "conv', r"not valid JSON at column 2[0-9]: "),
    "not an object": ("[1, 2]", r"expected a JSON object \{\.\.\.\}, got a list"),
    "repeated key": ('{"image": "a", "image": "b"}', r"not valid JSON: key 'image' is given twice"),
    "nan": ('{"image": "a.png", "boxes": [[NaN, 0, 1, 1]]}', r"NaN is not a number in JSON"),
    "unknown key": ({**BOX, "bboxes": []}, r"unknown key 'bboxes'; expected image, conversations, .*\(put your own under 'meta'\)"),
    "no conversations": ({"image": "a.png"}, r"'conversations' must be a list of messages, got null"),
    "empty conversations": ({"image": "a.png", "conversations": []}, r"'conversations' is empty; expected a question and its answer"),
    "wrong message": ({"image": "a.png", "conversations": [{"role": "user"}]}, r'conversations\[0\] must be \{"from": "human", "value"'),
    "wrong order": ({"image": "a.png", "conversations": ask()[::-1]}, r"conversations\[0\]: expected a message from 'human', got 'gpt'"),
    "no answer": ({"image": "a.png", "conversations": ask()[:1]}, r"conversations\[0\] has no answer; expected a message from 'gpt'"),
    "empty question": ({"image": "a.png", "conversations": ask(" ")}, r"conversations\[0\]: the question is empty"),
    "only the picture": ({"image": "a.png", "conversations": ask("<image>")}, r"the question is empty; expected text beside <image>"),
    "empty answer": ({"image": "a.png", "conversations": ask("q", "")}, r"conversations\[1\]: the answer is empty"),
    "picture inside": ({"image": "a.png", "conversations": ask("see <image> here")}, r"<image> in a question"),
    "picture in answer": ({"image": "a.png", "conversations": ask("q", "<image>")}, r"<image> in an answer"),
    "box in question": ({"image": "a.png", "conversations": ask("<box>?")}, r"<box> in a question; boxes and points belong in answers"),
    "missing box": (BOX, r"more <box> in the answers than entries in 'boxes'"),
    "missing point": ({"image": "a.png", "conversations": ask("q", "<point>")}, r"more <point> in the answers than entries in 'points'"),
    "unused box": ({**BOX, "boxes": [[0, 0, 1, 1]] * 3}, r"3 boxes but 1 <box> in the answers; every one must be used"),
    "unused point": ({"image": "a.png", "conversations": ask(), "points": [[1, 1]]}, r"1 point but 0 <point> in the answers"),
    "boxes not a list": ({**BOX, "boxes": {}}, r"'boxes' must be a list, got an object"),
    "three numbers": ({**BOX, "boxes": [[1, 2, 3]]}, r"boxes\[0\] must be \[x0, y0, x1, y1\] in pixels, got \[1, 2, 3\]"),
    "text in a box": ({**BOX, "boxes": [["1", 2, 3, 4]]}, r"boxes\[0\] must be \[x0, y0, x1, y1\]"),
    "infinite": (json.dumps({**BOX, "boxes": [[1, 2, 3, 4]]}).replace("4]", "1e999]"), r"boxes\[0\] must be .* inf"),
    "true is no number": ({**BOX, "boxes": [[True, 2, 3, 4]]}, r"boxes\[0\] must be \[x0, y0, x1, y1\]"),
    "width and height": ({**BOX, "boxes": [[30, 30, 10, 10]]}, r"expected x0 < x1 and y0 < y1 \(corners, not width and height\)"),
    "box outside": ({**BOX, "boxes": [[64, 0, 90, 10]]}, r"boxes\[0\] \[64, 0, 90, 10\] lies outside the picture of 64x48 pixels"),
    "point outside": ({"image": "a.png", "conversations": ask("q", "<point>"), "points": [[1, 48.5]]}, r"points\[0\] \[1, 48\.5\] lies outside"),
    "box without picture": ({"conversations": ask("q", "<box>"), "boxes": [[0, 0, 1, 1]]}, r"boxes or points without an 'image' they are in"),
    "no such picture": ({"image": "gone.png", "conversations": ask()}, r"gone\.png: no such picture; check the path"),
    "image not text": ({"image": 3, "conversations": ask()}, r"'image' must be text, got a number"),
    "image empty": ({"image": "", "conversations": ask()}, r"'image' must be text, got ''"),
    "address": ({"image": "https://x.org/a.png", "conversations": ask()}, r"'image' is the address .*; download it"),
}  # fmt: skip


@pytest.mark.parametrize(("row", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_rows_name_file_and_line(folder: Path, row: Any, message: str) -> None:
    dataset = write(folder, {"image": "a.png", "conversations": ask()}, "", row)
    with pytest.raises(DataError, match=rf"d\.jsonl:3: .*{message}|d\.jsonl:3: {message}"):
        dataset[1]
    assert dataset[0].turns


def test_partly_outside_is_allowed(folder: Path) -> None:
    assert write(folder, {**BOX, "boxes": [[-3, 0, 90, 10]]})[0].turns[0].boxes == (Box(-3, 0, 90, 10),)


def test_not_utf8(folder: Path) -> None:
    (folder / "d.jsonl").write_bytes(b'{"image": "\xff"}')
    with pytest.raises(DataError, match=r"d\.jsonl:1: not UTF-8 \(byte 11\); save the file as UTF-8"):
        JsonlDataset(JsonlConfig(path=str(folder / "d.jsonl")))[0]


def test_damaged_pictures_name_the_row_when_opened(folder: Path) -> None:
    (folder / "a.png").write_bytes((folder / "a.png").read_bytes()[:60])
    sample = write(folder, {"image": "a.png", "conversations": ask()})[0]
    assert sample.open_image is not None
    with pytest.raises(DataError, match=r"d\.jsonl:1: .*a\.png: damaged or truncated picture"):
        sample.open_image()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, r"no such file; the dataset `jsonl` needs a file with one JSON object per line"),
        (lambda path: path.mkdir(), r"is a folder"),
        (lambda path: path.write_text("\n \n"), r"no rows"),
    ],
    ids=["missing", "folder", "empty"],
)
def test_files_that_are_none(tmp_path: Path, make: Any, message: str) -> None:
    make(tmp_path / "d.jsonl")
    with pytest.raises(DataError, match=rf"d\.jsonl: {message}"):
        JsonlDataset(JsonlConfig(path=str(tmp_path / "d.jsonl")))


def test_bounds(folder: Path) -> None:
    dataset = write(folder, {"image": "a.png", "conversations": ask()})
    for index in (-1, 1):
        with pytest.raises(IndexError, match=r"has rows 0\.\.0"):
            dataset[index]
