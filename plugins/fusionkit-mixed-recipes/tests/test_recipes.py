"""The recipes plan without torch, say what they need, and the offline one trains, saves and answers."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from PIL import Image

import fusionkit

NAMES = ("clip_convnext", "offline", "two_scales")
PLUGINS = ("openclip.", "perceiver.", "pyramid.")


def test_these_are_the_recipes_of_the_pack() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fusionkit", "list", "recipes", "--json"], capture_output=True, text=True, check=True
    )
    rows = [row for row in json.loads(done.stdout)["recipes"] if row["distribution"] == "fusionkit-mixed-recipes"]
    assert {(row["prefix"], row["name"], row["state"]) for row in rows} == {("mixed", name, "ok") for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_planned_without_torch(name: str) -> None:
    code = (
        f"import sys, fusionkit; plan = fusionkit.plan(fusionkit.load_recipe('mixed:{name}')); "
        "print(plan.parameters, *(m for m in ('torch', 'open_clip', 'timm', 'numpy') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    (parameters,) = done.stdout.split()
    assert int(parameters) > 1_000_000


@pytest.mark.parametrize("name", NAMES)
def test_every_plugin_it_uses_is_required(name: str) -> None:
    recipe = fusionkit.load_recipe(f"mixed:{name}")
    used = {node.distribution[0] for node in fusionkit.plan(recipe).nodes} - {"fusionkit"}
    required = {text.partition(">=")[0] for text in recipe.requires}
    assert used == required
    assert required <= {
        text.partition(">=")[0].partition("<")[0] for text in metadata.requires("fusionkit-mixed-recipes")
    }


def test_a_missing_plugin_is_told_before_anything_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    from fusionkit.errors import RecipeError

    version = metadata.version

    def without(name: str) -> str:
        if name == "fusionkit-pyramid":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", without)
    with pytest.raises(RecipeError, match=r'is not installed \(pip install "fusionkit-pyramid'):
        fusionkit.load_recipe("mixed:two_scales")


def test_the_offline_one_trains_saves_and_answers(tmp_path: Path) -> None:
    from fusionkit.model.checkpoint import load_checkpoint
    from fusionkit.train.run import train

    recipe = fusionkit.load_recipe("mixed:offline").canonical()
    data = {"type": "synthetic_scenes", "seed": 1, "samples": 4, "size": 48}
    recipe["train"].update(data=[data], global_batch_size=2, micro_batch_size=2)
    for stage in recipe["train"]["stages"].values():
        stage["steps"] = 1
    finished = train(fusionkit.load_recipe(recipe), tmp_path / "run")
    model, processor = load_checkpoint(finished.folder)
    inputs = processor(images=Image.new("RGB", (48, 48)), text=[processor.prompt("box the red circle")])
    answer = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert answer.shape[0] == 1
