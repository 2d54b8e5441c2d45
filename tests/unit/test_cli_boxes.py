"""`fusionkit boxes`: encode, decode, transcode and draw, and what they say of bad rows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from command_line import exit_code
from PIL import Image

from fusionkit.evaluate.draw import ANSWER, TRUTH

ROW = {"id": 7, "size": [640, 480], "boxes": [[64, 48, 320, 240, "cat"]], "points": [[320, 120]]}


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def read(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_encode_writes_text_and_says_its_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("boxes", "encode", written(tmp_path / "a.jsonl", ROW), "--to", "internvl") == 0
    out, err = capsys.readouterr()
    assert read(out) == [
        {"id": 7, "size": [640, 480], "text": "<ref>cat</ref><box>[[100, 100, 500, 500]]</box><box>[[500, 250]]</box>"}
    ]
    assert err == "worst error: at most 0.32 px (in a picture of 640x480)\n"


def test_decode_gives_pixels_and_names_malformed_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"size": [1000, 1000], "text": "<box>(0,0),(999,999)</box>"}, {"size": [10, 10], "text": "<box>(1,2"}]
    path, out = written(tmp_path / "a.jsonl", *rows), tmp_path / "out.jsonl"
    assert exit_code("boxes", "decode", path, "--from", "qwen_vl", "-o", out) == 0
    first, second = read(out.read_text())
    assert (first["boxes"], first["points"], first["malformed"]) == ([[0.0, 0.0, 1000.0, 1000.0]], [], [])
    assert (second["boxes"], second["malformed"]) == ([], ["<box>(1,2"])
    assert f"{path}:2: malformed: <box>(1,2" in capsys.readouterr().err
    assert exit_code("boxes", "decode", path, "--from", "qwen_vl", "--strict") == 2
    assert f"error: {path}:2: '<box>(1,2' is no box" in capsys.readouterr().err


def test_transcode_keeps_words_and_states_the_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (1920, 1080)).save(tmp_path / "p.png")
    rows = [
        {"size": [640, 480], "text": "see <loc0512><loc0000><loc1023><loc1023> cat"},
        {
            "image": "p.png",
            "conversations": [
                {"from": "human", "value": "<loc0000><loc0000> stays in a question"},
                {"from": "gpt", "value": "<loc0000><loc0000>\nyes"},
            ],
        },
    ]
    path = written(tmp_path / "a.jsonl", *rows)
    assert exit_code("boxes", "transcode", path, "--from", "paligemma", "--to", "coordinate_bins") == 0
    out, err = capsys.readouterr()
    first, second = read(out)
    assert first["text"] == "see <BOX><COORD_0><COORD_500><COORD_999><COORD_999><END_BOX>"
    assert [turn["value"] for turn in second["conversations"]] == [
        "<loc0000><loc0000> stays in a question",
        "<POINT><COORD_0><COORD_0><END_POINT>\nyes",
    ]
    assert "worst error: at most 0.961 px (in a picture of 1920x1080)" in err  # 1920 / (2 * 999)
    # 512/1023 of 480 is 240.23460, bin 500 of 999 is 240.24024
    assert "worst error in this file: 0.00564 px" in err


@pytest.mark.parametrize("source", ["paligemma", "coordinate_bins", "qwen2_5_vl", "florence2", "shikra", "kosmos2"])
@pytest.mark.parametrize("to", ["norm1000", "coordinate_bins", "molmo_points", "pixel_text"])
def test_every_pair_of_formats(source: str, to: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = written(tmp_path / "a.jsonl", {"size": [640, 480], "boxes": [[64, 48, 320, 240]], "points": [[100, 200]]})
    middle, end = tmp_path / "b.jsonl", tmp_path / "c.jsonl"
    assert exit_code("boxes", "encode", start, "--to", source, "-o", middle) == 0
    assert exit_code("boxes", "transcode", middle, "--from", source, "--to", to, "-o", end) == 0
    capsys.readouterr()
    assert exit_code("boxes", "decode", end, "--from", to) == 0
    (row,) = read(capsys.readouterr().out)
    assert row["malformed"] == []
    assert row["boxes"][0][:4] == pytest.approx([64, 48, 320, 240], abs=21 if source == "kosmos2" else 1)
    assert row["points"][0][:2] == pytest.approx([100, 200], abs=21 if source == "kosmos2" else 1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "2: not valid JSON"),
        ({"size": [640, 480]}, "2: neither 'boxes' nor 'points' in the row"),
        ({"size": [0, 480], "boxes": []}, r"2: 'size' must be \[width, height\] in pixels.*got \[0, 480\]"),
        ({"image": "none.png", "boxes": []}, "2: .*none.png"),
        (
            {"size": [9, 9], "boxes": [[1, 2, 3]]},
            r"2: boxes\[0\] must be 4 numbers and perhaps a label, got \[1, 2, 3\]",
        ),
        ({"size": [9, 9], "boxes": [[1, 2, 3, 4, "a<b"]]}, "2: label 'a<b' cannot be written in internvl"),
        ({"size": [9, 9], "points": 3}, "2: 'points' must be a list, got a number"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_written(
    row: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = written(tmp_path / "a.jsonl", ROW, row), tmp_path / "out.jsonl"
    assert exit_code("boxes", "encode", path, "--to", "internvl", "-o", out) == 2
    assert not out.exists()
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert re.search(f"a.jsonl:{message}", error), error


def test_settings_and_unknown_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "a.jsonl", {"size": [100, 100], "points": [[100, 50]]})
    assert exit_code("boxes", "encode", path, "--to", "coordinate_bins,bins=11") == 0
    assert read(capsys.readouterr().out)[0]["text"] == "<POINT><COORD_10><COORD_5><END_POINT>"
    for to, message in [
        ("coordinate_bins,bins=1", "bins"),
        ("coordinate_bins,bins", "NAME,SETTING"),
        ("coordinate_bin", "coordinate_bins"),
    ]:
        assert exit_code("boxes", "encode", path, "--to", to) == 2
        assert message in capsys.readouterr().err


def test_draw_shows_predictions_and_truth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (400, 400), "black").save(tmp_path / "p.png")
    (tmp_path / "found.json").write_text(json.dumps({"text": "<loc0256><loc0256><loc0768><loc0768> cat"}))
    (tmp_path / "true.json").write_text(json.dumps({"boxes": [[20, 20, 60, 60]]}))
    out = tmp_path / "out.png"
    words = ("--from", "paligemma", "--truth", tmp_path / "true.json", "-o", out)
    assert exit_code("boxes", "draw", tmp_path / "p.png", tmp_path / "found.json", *words) == 0
    picture = Image.open(out)
    assert picture.getpixel((200, 101)) == ANSWER
    assert picture.getpixel((21, 21)) == TRUTH
    (tmp_path / "bad.json").write_text(json.dumps([{"boxes": [[1]]}]))
    assert exit_code("boxes", "draw", tmp_path / "p.png", tmp_path / "bad.json", "-o", out) == 2
    assert "bad.json: object 1: boxes[0] must be 4 numbers" in capsys.readouterr().err
