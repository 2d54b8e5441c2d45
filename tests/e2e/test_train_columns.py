"""Training and evaluating on a folder that the library datasets reads, from the command line."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from conftest import SMALL, Fusionkit

pytest.importorskip("datasets")
COLOURS = ("red", "green", "blue", "yellow")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of pictures with questions; row 6 has no question."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    draw = random.Random(0)
    rows: list[dict[str, Any]] = []
    for number in range(8):
        colour = draw.choice(COLOURS)
        Image.new("RGB", (24, 24), colour).save(folder / f"{number}.png")
        asked = "" if number == 5 else "what colour is it"
        rows.append({"file_name": f"{number}.png", "asked": asked, "said": colour, "where": [2.0, 2.0, 20.0, 20.0]})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def write(path: Path, data: str, train: str = "packing: true") -> Path:
    """The small recipe with this data, its stage with answers alone."""
    head, *_ = SMALL.partition("  stages:\n")
    stage = "  stages:\n    answers: {steps: 3, trainable: [fusion, language_model]}\n"
    evaluate = f"evaluate:\n  - {{name: own, metrics: [exact_match], data: {data}}}\n"
    path.write_text(f"{head}  {train}\n{stage}  data: [{data}]\n{evaluate}", encoding="utf-8")
    return path


def mapping(folder: object, columns: str = "{image: image, question: asked, answer: said}") -> str:
    return f"{{type: hugging_face, path: '{folder}', split: train, columns: {columns}}}"


def test_from_a_folder_to_scores(fusionkit: Fusionkit, pictures: Path, tmp_path: Path) -> None:
    recipe = write(tmp_path / "own.yaml", mapping(pictures), "bad_samples: skip")
    said = fusionkit("train", recipe, "-o", tmp_path / "run")
    assert said.code == 0, said.err
    assert "1 sample could not be used and was left out" in said.err
    skipped = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert skipped[0]["reason"] == f"{pictures} train:6: column `asked` must hold text or a whole number, got ''"
    locked = json.loads((tmp_path / "run" / "lock.json").read_text())
    assert list(locked["run"]["data"]) == [str(pictures)]
    (pictures / "metadata.jsonl").write_text((pictures / "metadata.jsonl").read_text().replace('""', '"what colour"'))
    said = fusionkit("evaluate", tmp_path / "run", "-n", "2", "-o", tmp_path / "scores", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{image: image, question: ask, answer: said}", "no column `ask` (columns.question); did you mean `asked`?"),
        ("{image: image, question: asked, answer: said}", "train:6: column `asked` must hold text or a whole number"),
    ],
)
def test_a_wrong_mapping_or_row_ends_the_run_with_one_line(
    fusionkit: Fusionkit, pictures: Path, tmp_path: Path, data: str, message: str
) -> None:
    said = fusionkit("train", write(tmp_path / "own.yaml", mapping(pictures, data)), "-o", tmp_path / "run")
    assert said.code == 2
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in said.err
    assert not (tmp_path / "run").exists()


def test_a_hub_id_without_a_network_is_one_line_too(
    fusionkit: Fusionkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = fusionkit("train", write(tmp_path / "own.yaml", mapping("someone/pictures")), "-o", tmp_path / "run")
    assert said.code == 2
    assert "error: someone/pictures: no such file or folder, and as an id of the hub it cannot be had" in said.err


def test_a_mapping_that_says_nothing_is_found_when_the_recipe_is_read(
    fusionkit: Fusionkit, pictures: Path, tmp_path: Path
) -> None:
    said = fusionkit("validate", write(tmp_path / "own.yaml", mapping(pictures, "{image: image}")))
    assert said.code == 2
    assert "give exactly one of columns.question, columns.conversations and `ask`" in said.err
    said = fusionkit("validate", write(tmp_path / "own.yaml", mapping(pictures, "{picture: image}")))
    assert said.code == 2
    assert "train.data.0.columns.picture" in said.err
