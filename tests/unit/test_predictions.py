"""Answers from anywhere: `boxes questions`, `score` and `sheet`, and what they say of answers that do not fit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import exit_code
from PIL import Image

from fusionkit import registry
from fusionkit.data.short_blocks import make_block, read_block
from fusionkit.errors import UsageError
from fusionkit.geometry import Box, Size
from fusionkit.pictures import open_picture, picture_size

BOXES = {
    "one.jpg": [[0, 0, 320, 240], [320, 240, 320, 240]],
    "two.jpg": [[100, 50, 200, 300]],
    "three.jpg": [[0, 0, 640, 480]],
}
SPLITS = {"one.jpg": "val", "two.jpg": "testA", "three.jpg": "testB"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """RefCOCO with three pictures and four expressions."""
    root = tmp_path / "refcoco"
    (root / "images").mkdir(parents=True)
    refs, annotations = [], []
    for number, (name, boxes) in enumerate(BOXES.items()):
        Image.new("RGB", (640, 480), "gray").save(root / "images" / name)
        for box in boxes:
            refs.append({"ann_id": len(refs), "image_id": number, "split": SPLITS[name], "sentences": [{"sent": f"thing {len(refs)}"}]})  # fmt: skip
            annotations.append({"id": len(annotations), "bbox": box})
    images = [{"id": number, "file_name": name} for number, name in enumerate(BOXES)]
    (root / "refs.json").write_text(json.dumps(refs))
    (root / "instances.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return root


def data(root: Path) -> str:
    return f"refcoco,root={root},splits=[val,testA,testB]"


def asked(root: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    assert exit_code("boxes", "questions", "--data", data(root)) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


TRUTH = [Box(x, y, x + w, y + h, "thing") for boxes in BOXES.values() for x, y, w, h in boxes]


def answers(path: Path, rows: list[dict[str, Any]], form: str, right: list[bool]) -> Path:
    """Answers in a format, each the truth or a corner of the picture."""
    tokenizer = make_block("box_tokenizers", form)
    boxes = [box if good else Box(630, 0, 640, 9, "thing") for box, good in zip(TRUTH, right, strict=True)]
    texts = [f"Here: {tokenizer.encode(box, Size(640, 480))}" for box in boxes]
    return written(path, [{"id": row["id"], "text": text} for row, text in zip(rows, texts, strict=True)])


def test_questions_name_themselves_and_their_picture(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = asked(root, capsys)
    assert rows[1] == {
        "id": "refs.json:0#1",
        "image": str(root / "images" / "one.jpg"),
        "size": [640, 480],
        "kind": "box",
        "question": "Locate thing 1.",
    }
    assert [row["id"] for row in rows] == ["refs.json:0#0", "refs.json:0#1", "refs.json:2#0", "refs.json:3#0"]


@pytest.mark.parametrize("form", registry.names("box_tokenizers"))
def test_answers_of_every_family_are_scored(
    form: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    form = "molmo_points,pairs=boxes" if form == "molmo_points" else form
    file = answers(tmp_path / "a.jsonl", asked(root, capsys), form, [True, True, True, False])
    assert exit_code("boxes", "score", file, "--data", data(root), "--from", form, "--json") == 0
    rows = {(row["questions"], row["metric"]): row for row in json.loads(capsys.readouterr().out)}
    assert rows["", "box_accuracy"]["value"] == 0.75
    assert rows["", "box_accuracy"]["low"] < 0.75 < rows["", "box_accuracy"]["high"]
    assert [rows[split, "box_accuracy"]["value"] for split in ("val", "testA", "testB")] == [1, 1, 0]
    assert rows["val", "box_accuracy"]["count"] == 2
    assert rows["val", "mean_iou"]["value"] > (0.8 if form == "kosmos2" else 0.98)  # kosmos2 knows 32 x 32 cells


def test_boxes_in_pixels_and_answers_in_order_need_no_format(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"boxes": [[box.x0, box.y0, box.x1, box.y1, "cat"]]} for box in TRUTH]
    file = written(tmp_path / "a.jsonl", rows)
    assert exit_code("boxes", "score", file, "--data", data(root), "--metric", "box_accuracy,threshold=0.9") == 0
    assert "box_accuracy,threshold=0.9  1.000" in capsys.readouterr().out
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert exit_code("boxes", "score", tmp_path / "a.json", "--data", data(root)) == 0


def test_two_runs_are_compared_on_the_same_questions(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = asked(root, capsys)
    new = answers(tmp_path / "new.jsonl", rows, "norm1000", [True, True, True, False])
    old = answers(tmp_path / "old.jsonl", rows[::1], "norm1000", [True, False, False, False])
    words = ("--data", data(root), "--from", "norm1000", "--against", old, "--metric", "box_accuracy")
    assert exit_code("boxes", "score", new, *words, "--json") == 0
    found = json.loads(capsys.readouterr().out)["differences"]
    assert [(row["questions"], row["difference"]) for row in found] == [
        ("", 0.5),
        ("testA", 1),
        ("testB", 0),
        ("val", 0.5),
    ]
    assert found[0]["low"] <= 0.5 <= found[0]["high"]
    assert exit_code("boxes", "score", new, *words, "-o", tmp_path / "report") == 0
    assert "difference" in capsys.readouterr().out
    kept = json.loads((tmp_path / "report" / "scores.json").read_text())
    assert kept["differences"] == found
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("data:image/png") == 8  # four best and four worst


def test_what_evaluate_wrote_can_be_scored_again(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = answers(tmp_path / "a.jsonl", asked(root, capsys), "paligemma", [True, False, True, False])
    words = ("--data", data(root), "--json")
    assert exit_code("boxes", "score", file, *words, "--from", "paligemma", "-o", tmp_path / "report") == 0
    first = capsys.readouterr().out
    assert exit_code("boxes", "score", tmp_path / "report" / "answers.jsonl", *words) == 0
    assert capsys.readouterr().out == first


def test_malformed_answers_count_as_wrong_and_are_counted(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": "<loc0000><loc0000><loc1023"}, {"text": "I see nothing"}, {"text": ""}, {"text": "<loc0000><loc0000><loc1023><loc1023>"}]  # fmt: skip
    file = written(tmp_path / "a.jsonl", rows)
    assert exit_code("boxes", "score", file, "--data", data(root), "--from", "paligemma", "--json") == 0
    accuracy = json.loads(capsys.readouterr().out)[0]
    assert (accuracy["value"], accuracy["count"], accuracy["malformed"]) == (0.25, 4, 0.25)


WRONG: dict[str, tuple[list[Any], str]] = {
    "too few": ([{"text": ""}] * 3, "3 answers to 4 questions; give each the 'id' of its question"),
    "one without an id": ([{"id": "refs.json:0#0", "text": ""}, {"text": ""}], "a.jsonl:2: no 'id', but 1 of 2 answers"),
    "a missing answer": ([{"id": "refs.json:0#0", "text": ""}], "no answer to 3 of 4 questions, the first is refs.json:0#1"),
    "two answers": ([{"id": "x", "text": ""}] * 2, "a.jsonl:2: a second answer to 'x', the first is at"),
    "a number for an id": ([{"id": 3, "text": ""}], "a.jsonl:1: 'id' must be text, got a number"),
    "nothing": ([{"answer_text": ""}] * 4, "a.jsonl:1: no 'text' to read boxes from"),
    "no text": ([{"text": 5}] * 4, "a.jsonl:1: 'text' must be text, got a number"),
}  # fmt: skip


@pytest.mark.parametrize(("rows", "message"), WRONG.values(), ids=WRONG.keys())
def test_answers_that_do_not_fit_are_named(
    rows: list[Any], message: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path / "a.jsonl", rows)
    assert exit_code("boxes", "score", file, "--data", data(root), "--from", "norm1000") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_other_mistakes_are_told(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = [row["id"] for row in asked(root, capsys)]
    file = written(tmp_path / "a.jsonl", [{"id": name, "text": ""} for name in [*ids, "refs.json:9#9"]])
    cases: list[tuple[tuple[object, ...], str]] = [
        (("--data", data(root)), "a.jsonl:5: no question is called 'refs.json:9#9' in this data"),
        (("--data", f"refcoco,root={root}"), "dataset 'refcoco,root="),
        (("--data", "refcocoo,split=val"), "refcoco"),
        (("--data", "synthetic_scenes"), "does not end; give it `samples`, for example samples=100"),
        (("--data", data(root), "--from", "none"), "none"),
    ]
    for words, message in cases:
        assert exit_code("boxes", "score", file, *words) == 2
        assert message in capsys.readouterr().err
    written(file, [{"id": name, "text": ""} for name in ids])
    assert exit_code("boxes", "score", file, "--data", data(root), "--metric", "count_accuracy") == 2
    assert (
        "count_accuracy: for none of these 4 questions (of kind box); name others with --metric"
        in capsys.readouterr().err
    )
    for row, message in (
        ({"boxes": [[1, 2, 3]]}, "a.jsonl:1: boxes[0] must be 4 numbers"),
        ({"boxes": [], "malformed": 3}, "a.jsonl:1: 'malformed' must be a list of texts, got a number"),
    ):
        written(file, [row] * 4)
        assert exit_code("boxes", "score", file, "--data", data(root)) == 2
        assert message in capsys.readouterr().err
    file.write_text('{"boxes": [[0, 0, 1e999, 4]]}\n' * 4)
    assert exit_code("boxes", "score", file, "--data", data(root)) == 2
    assert "a.jsonl:1: boxes[0] must be 4 numbers" in capsys.readouterr().err
    written(file, [{"other": 1}] * 4)
    assert exit_code("boxes", "score", file, "--data", data(root)) == 2
    assert "a.jsonl:1: expected 'text', or 'boxes' and 'points'; it has 'other'" in capsys.readouterr().err


def test_an_answer_to_another_question_is_refused(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = asked(root, capsys)
    rows[0]["question"] = rows[1]["question"]
    file = written(tmp_path / "a.jsonl", [row | {"text": ""} for row in rows])
    assert exit_code("boxes", "score", file, "--data", data(root), "--from", "norm1000") == 2
    assert "a.jsonl:1: answers 'Locate thing 1.', but refs.json:0#0 asks 'Locate thing 0.'" in capsys.readouterr().err


def test_a_sheet_shows_the_worst_first(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = answers(tmp_path / "a.jsonl", asked(root, capsys), "norm1000", [True, True, True, False])
    out = tmp_path / "sheet.png"
    words = ("boxes", "sheet", file, "--data", data(root), "--from", "norm1000", "-o", out)
    assert exit_code(*words, "-n", 1) == 0
    assert f"wrote {out} with 1 of 4 answers (worst)" in capsys.readouterr().err
    page = open_picture(out)
    assert page.width == 480 + 24  # scaled down
    corner = np.asarray(page)[14:20, 470:500].reshape(-1, 3).tolist()
    assert any(red > 200 and green < 120 > blue for red, green, blue in corner)  # the wrong box is at the top right
    for order, width in (("best", 3), ("spread", 2)):
        assert exit_code(*words, "-n", width, "--order", order) == 0
        assert picture_size(out).width == width * (480 + 12) + 12
    assert exit_code(*words[:-1], tmp_path / "sheet.txt") == 2
    assert "expected a name that ends in .png" in capsys.readouterr().err


def test_points_are_ranked_by_f1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (100, 100)).save(tmp_path / "images" / "a.png")
    rows = [{"image": "images/a.png", "label": "cats", "points": [{"x": 10, "y": 10}]}] * 2
    written(tmp_path / "points.jsonl", rows)
    written(tmp_path / "a.jsonl", [{"text": '<point x="10.0" y="10.0">x</point>'}, {"text": "none"}])
    words = ("--data", f"pixmo,root={tmp_path},parts=[points]", "--from", "molmo_points")
    assert exit_code("boxes", "score", tmp_path / "a.jsonl", *words, "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["metric"], row["value"], row["precision"], row["recall"]) == ("pointing", 0.5, 0.5, 0.5)
    assert exit_code("boxes", "sheet", tmp_path / "a.jsonl", *words, "-o", tmp_path / "s.png", "-n", 1) == 0


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("refcoco,split=val,root=a b", {"split": "val", "root": "a b"}),
        ("refcoco,splits=[val, testA]", {"splits": ("val", "testA")}),
        ('refcoco,splits=["val"]', {"splits": ("val",)}),
    ],
)
def test_short_blocks(text: str, values: dict[str, Any]) -> None:
    _, config = read_block("datasets", text)
    assert {key: getattr(config, key) for key in values} == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pixmo,parts", "expected NAME,SETTING=VALUE, for example pixmo,parts="),
        ("pixmo,root=a,root=b", "root is given twice"),
        ("pixmo,rot=a", "dataset 'pixmo,rot=a': rot: Extra inputs are not permitted"),
        ("refcoco,root=a", "dataset 'refcoco,root=a': give either"),
    ],
)
def test_short_blocks_that_are_wrong(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_block("datasets", text)


def test_scoring_does_not_import_torch(root: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "a.jsonl", [{"boxes": []}] * 4)
    code = (
        "import sys; from fusionkit.cli.main import run\n"
        f"try: run(['boxes', 'score', {str(file)!r}, '--data', {data(root)!r}])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
