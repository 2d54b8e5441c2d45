"""The recipes: planned without torch, built without weights, trained for a step, asked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fusionkit_real_small.__main__ import main
from PIL import Image

import fusionkit

TINY_RUN = (
    "streams.semantic.encoder.weights=random",
    "streams.semantic.encoder.image_size=28",
    "streams.semantic.select.layers=[1, 2]",
    "cropper.size=28",
)
DATA = {"type": "synthetic_scenes", "seed": 1, "samples": 4, "size": 48}


def small(name: str) -> dict:
    """A recipe shrunk to what a test can run: random weights, 28 px, four pictures."""
    recipe = fusionkit.load_recipe(name, set=TINY_RUN).canonical()
    recipe["train"].update(data=[DATA], global_batch_size=2, micro_batch_size=2)
    for stage in recipe["train"]["stages"].values():
        stage["steps"] = 2
    return recipe


@pytest.mark.parametrize("name", ["real_small", "real_smollm2"])
def test_plan_is_the_built_model(name: str) -> None:
    planned = fusionkit.plan(fusionkit.load_recipe(f"real:{name}"))
    model = fusionkit.build(planned, device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == planned.parameters


def test_planning_imports_no_heavy_library() -> None:
    code = (
        "import sys, fusionkit; fusionkit.plan(fusionkit.load_recipe('real:real_smollm2')); "
        "print(*(name for name in ('torch', 'numpy', 'transformers', 'onnx', 'skimage') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""


def test_cache_then_train_then_ask(
    cache_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Features are kept by the command, read by training, and not touched when the checkpoint is asked."""
    import json

    from fusionkit.model.checkpoint import load_checkpoint
    from fusionkit.train.run import train

    recipe = small("real:real_small")
    file = tmp_path / "small.yaml"
    file.write_text(json.dumps(recipe))  # JSON is YAML
    # Random weights differ from build to build, and with them the features: the same ones here.
    torch.manual_seed(0)
    assert main(["cache", str(file)]) == 0
    assert ": 4 pictures" in capsys.readouterr().out
    finished = train(fusionkit.load_recipe(file), tmp_path / "run")
    model, processor = load_checkpoint(finished.folder)
    kept = len(list(cache_home.rglob("*.npy")))
    inputs = processor(images=Image.new("RGB", (48, 48)), text=[processor.prompt("box the red circle")])
    answer = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert answer.shape[0] == 1
    assert len(list(cache_home.rglob("*.npy"))) == kept


def test_data_without_an_end_cannot_be_cached(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    recipe = small("real:real_small")
    recipe["train"]["data"] = [{"type": "synthetic_scenes"}]
    file = tmp_path / "endless.yaml"
    file.write_text(json.dumps(recipe))
    assert main(["cache", str(file)]) == 2
    assert "does not end; give it an end, for example `pictures: 2048`" in capsys.readouterr().err


def test_a_recipe_that_keeps_nothing_cannot_be_cached(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "builtin:tiny"]) == 2
    assert "no stream has `encoder: {type: real.dinov2_small, cache: float16}`" in capsys.readouterr().err
