"""docs/grounding.md does what it says: its commands and snippets run, its tables are what the blocks say."""

from __future__ import annotations

import json
import pickle
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fusionkit import registry
from fusionkit.cli.main import run
from fusionkit.data.short_blocks import make_block
from fusionkit.geometry import Box, Size

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "grounding.md").read_text(encoding="utf-8")
FENCES = re.findall(r"^```(\w+)\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
COMMANDS = [line for kind, text in FENCES if kind == "sh" for line in text.splitlines()]
PYTHON = [text for kind, text in FENCES if kind == "python"]
BOXES = [Box(64, 48, 320, 240), Box(10, 20, 110, 220), Box(300, 200, 640, 480)]


def lines(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the guide's commands name: RefCOCO and PixMo in small, and answers of a model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_files", {})
    root = tmp_path / "data" / "refcoco"
    (root / "images").mkdir(parents=True)
    refs, instances = [], {"images": [], "annotations": []}
    for number, (split, box) in enumerate(zip(("val", "testA", "testB"), BOXES, strict=True)):
        Image.new("RGB", (640, 480), "gray").save(root / "images" / f"{number}.jpg")
        refs.append({"ref_id": number, "ann_id": number, "image_id": number, "split": split, "category_id": 1,
                     "file_name": f"{number}_0.jpg", "sent_ids": [number],
                     "sentences": [{"sent_id": number, "sent": "left cat", "raw": "Left cat", "tokens": ["left", "cat"]}]})  # fmt: skip
        instances["images"].append({"id": number, "file_name": f"{number}.jpg"})
        bbox = [box.x0, box.y0, box.x1 - box.x0, box.y1 - box.y0]
        instances["annotations"].append({"id": number, "bbox": bbox})
    (root / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    (root / "instances.json").write_text(json.dumps(instances))
    qwen = make_block("box_tokenizers", "qwen2_5_vl")
    answers = [{"id": f"refs(unc).p:{n}#0", "text": qwen.encode(box, Size(640, 480))} for n, box in enumerate(BOXES)]
    lines(tmp_path / "answers.jsonl", answers)
    lines(tmp_path / "older.jsonl", [row | {"text": "I see no cat"} if n else row for n, row in enumerate(answers)])
    Image.new("RGB", (48, 48), "red").save(tmp_path / "photo.jpg")
    (tmp_path / "predictions.json").write_text(json.dumps({"question": "the cat", "boxes": [[4, 4, 30, 40]]}))
    talk = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "<loc0102><loc0102><loc0512><loc0512> cat"}]
    lines(tmp_path / "train.jsonl", [{"size": [640, 480], "conversations": talk}])
    lines(tmp_path / "truth.jsonl", [{"size": [640, 480], "boxes": [[64, 48, 320, 240, "cat"]]}])
    pixmo = tmp_path / "data" / "pixmo"
    lines(pixmo / "cap.jsonl", [{"image": "a.png", "caption": "A cat. It sleeps."}])
    Image.new("RGB", (30, 20)).save(pixmo / "a.png")
    lines(tmp_path / "captions.jsonl", [{"text": "A cat. It runs."}])
    (tmp_path / "my_judge.py").write_text(next(text for text in PYTHON if text.startswith("# my_judge.py")))
    return tmp_path


def fusionkit(command: str) -> int:
    words = shlex.split(command)
    assert words[0] == "fusionkit"
    try:
        run(words[1:])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_every_command_runs_in_order(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    assert len(COMMANDS) == 10
    outputs = {}
    for command in COMMANDS:
        status = fusionkit(command)
        outputs[command] = capsys.readouterr()
        assert status == 0, f"{command}: {outputs[command].err}"
    kinds = {shlex.split(command)[2]: found for command, found in outputs.items()}
    (asked,) = (json.loads(found.out) for command, found in outputs.items() if command.startswith("fusionkit ask"))
    assert len(asked["points"]) == len(asked["point_log_p"])
    score = next(iter(outputs.values())).out
    assert re.search(r"^refcoco +box_accuracy +1\.000 ", score, re.MULTILINE)
    for split in ("val", "testA", "testB"):
        assert re.search(rf"^refcoco +{split} +box_accuracy +1\.000 ", score, re.MULTILINE)
    assert {path.name for path in (here / "report").iterdir()} >= {"scores.json", "answers.jsonl", "report.html"}
    assert len((here / "questions.jsonl").read_text().splitlines()) == 3
    for name in ("worst.png", "out.png"):
        with Image.open(here / name) as picture:
            assert min(picture.size) > 100
    (row,) = map(json.loads, (here / "mine.jsonl").read_text().splitlines())
    assert row["conversations"][1]["value"] == "<BOX><COORD_100><COORD_100><COORD_500><COORD_500><END_BOX>"
    assert "worst error: at most 0.32 px" in kinds["transcode"].err
    compared = next(found.out for command, found in outputs.items() if "--against" in command)
    assert re.search(r"^refcoco +box_accuracy +0\.667 ", compared.partition("difference")[2], re.MULTILINE)
    assert json.loads(kinds["decode"].out)["boxes"] == [[64.0, 48.0, 320.0, 240.0, "cat"]]
    assert re.search(r"my\.caption_f1 +0\.500 ", outputs[COMMANDS[-1]].out)


def test_the_snippet_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (snippet,) = [text for text in PYTHON if not text.startswith("# ")]
    names: dict[str, Any] = {}
    exec(compile(snippet, "grounding.md", "exec"), names)
    assert capsys.readouterr().out.startswith("(Box(")
    assert len(names["prediction"].box_log_p) == len(names["prediction"].boxes) == 1
    assert names["prediction"].box_log_p[0] < 0


def test_the_table_of_formats_is_what_they_write() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(.*)` \| ([0-9.]+) \|$", GUIDE, re.MULTILINE)
    assert [name for name, _, _ in rows] == [name for name in registry.names("box_tokenizers") if "." not in name]
    for name, text, error in rows:
        tokenizer, size = make_block("box_tokenizers", name), Size(640, 480)
        assert tokenizer.encode(Box(64, 48, 320, 240, "cat"), size) == text
        assert f"{max(tokenizer.tolerance(size)):.3f}" == error


def test_every_metric_has_its_line_and_real_settings() -> None:
    section = GUIDE.partition("## Metrics")[2].partition("- **Intervals**")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| .* \| (.*)\|$", section, re.MULTILINE))
    assert sorted(rows) == [name for name in registry.names("metrics") if "." not in name]
    for name, settings in rows.items():
        for setting in re.findall(r"`(\w+(?:=[^`]*)?)`", settings):
            if "=" in setting:
                make_block("metrics", f"{name},{setting}")
            elif setting not in ("answer", "punctuation"):  # a second value of the setting before it
                assert setting in registry.spec("metrics", name).config.model_fields
    assert "point_accuracy" in rows


def test_every_dataset_of_files_has_its_line() -> None:
    section = GUIDE.partition("## Datasets")[2]
    names = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert sorted([*names, "synthetic_scenes"]) == [name for name in registry.names("datasets") if "." not in name]


def test_what_is_said_of_the_fuzz_is_stored() -> None:
    kept = json.loads((ROOT / "benchmarks" / "results" / "cpu" / "box_fuzz.json").read_text())
    assert f"{kept['strings_per_format']:,} random and damaged texts per format" in GUIDE
    assert sorted(kept["seconds"]) == [name for name in registry.names("box_tokenizers") if "." not in name]
