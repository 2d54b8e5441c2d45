"""The shipped checkpoint is what its files say: small, made by `builtin:tiny`, right on pictures nobody trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fusionkit
from fusionkit.evaluate.run import evaluate
from fusionkit.evaluate.scores import Scores
from fusionkit.model.checkpoint import find_checkpoint, load_checkpoint, read_lock
from fusionkit.recipe.lock import check_lock

PICTURES = 32


@pytest.fixture(scope="module")
def folder() -> Path:
    return find_checkpoint("checkpoint:tiny")


def scores(*, shuffle_pictures: bool = False) -> dict[str, Scores]:
    model, processor = load_checkpoint("checkpoint:tiny")
    recipe = fusionkit.load_recipe("builtin:tiny")
    found = evaluate(model, processor, recipe, samples=PICTURES, shuffle_pictures=shuffle_pictures)
    return {entry.name: entry for entry in found}


def test_it_is_small_and_complete(folder: Path) -> None:
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 4_000_000
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "lock.json", "log.jsonl", "tokenizer.json", "scores.json"} <= names
    facts = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    assert {"command", "seconds", "device", "scores"} <= set(facts)


def test_the_shipped_recipe_made_it(folder: Path) -> None:
    check_lock(read_lock(folder), fusionkit.load_recipe("builtin:tiny"))


def test_it_answers_unseen_pictures(folder: Path) -> None:
    """Thresholds leave room for 32 pictures: about three standard errors below the stored scores of 512."""
    found = scores()
    stored = json.loads((folder / "scores.json").read_text(encoding="utf-8"))["scores"]
    unseen = found["held_out_pictures"].values
    for row in (row for row in stored if row["data"] == "held_out_pictures" and row["metric"] != "mean_iou"):
        value, count = unseen[row["metric"]][row["metric"]], unseen[row["metric"]]["count"]
        slack = 3 * (max(row["value"] * (1 - row["value"]), 0.01) / count) ** 0.5
        assert value >= row["value"] - slack, row["metric"]


def test_it_looks_at_the_picture() -> None:
    """Shown another sample's picture, it must fall to what the question alone gives."""
    blind = scores(shuffle_pictures=True)["held_out_pictures"].values
    assert blind["box_accuracy"]["box_accuracy"] <= 0.15
    assert blind["point_accuracy"]["point_accuracy"] <= 0.15
