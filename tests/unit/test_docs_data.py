"""docs/data.md: its mapping is one, its settings are there, its table is the stored measurement."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from model_recipe import recipe

import fusionkit
from fusionkit.blocks.datasets.specs import HuggingFaceConfig
from fusionkit.recipe.tree import plain
from fusionkit.recipe.yaml_subset import parse_yaml


@pytest.fixture(scope="module")
def text(repository: Path) -> str:
    return (repository / "docs" / "data.md").read_text(encoding="utf-8")


def training(data: Any, **more: Any) -> dict[str, Any]:
    stages = {"answers": {"steps": 1, "trainable": ["fusion"]}}
    return recipe(train={"learning_rates": {"fusion": 1e-3}, "stages": stages, "data": data, **more})


def test_the_mapping_is_one(text: str) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    loaded = fusionkit.load_recipe(training(plain(parse_yaml(block, "docs"))["data"]))
    assert loaded.train is not None
    vqa, phrases = loaded.train.data
    assert isinstance(vqa, HuggingFaceConfig)
    assert isinstance(phrases, HuggingFaceConfig)
    assert (vqa.columns.question, phrases.ask, phrases.box_format) == ("question", "Locate {phrase}.", "xywh")


def test_the_setting_is_one(text: str) -> None:
    assert "--set train.packing=true" in text
    loaded = fusionkit.load_recipe(training([{"type": "synthetic_scenes"}]), set=("train.packing=true",))
    assert loaded.train is not None
    assert loaded.train.packing


def test_the_table_is_the_stored_measurement(text: str, repository: Path) -> None:
    stored = json.loads((repository / "benchmarks/results/cpu/packing.json").read_text(encoding="utf-8"))["rows"]
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.split("| batch |")[1].splitlines()[2:]
        if line.startswith("|")
    ]
    assert len(cells) == len(stored)
    for (_, padded, packed, ratio, noise), row in zip(cells, stored, strict=True):
        assert padded == f"{row['filled']['padded']:.0%}".replace("%", " %")
        assert packed == f"{row['filled']['packed']:.0%}".replace("%", " %")
        measured, again = (row["ratio_to_padded"][name] for name in ("packed", "again"))
        assert ratio == f"{measured['median']:.2f} ({measured['range'][0]:.2f} to {measured['range'][1]:.2f})"
        assert noise == f"{again['range'][0]:.2f} to {again['range'][1]:.2f}"
        assert row["largest_difference_of_loss"] < 1e-5
