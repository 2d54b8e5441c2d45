"""`benchmarks/full_size_vision.py`: what it measures on a small recipe, and what its stored result says of the full one."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fusionkit.recipe import load_recipe
from fusionkit.recipe.plan import plan

ROOT = Path(__file__).resolve().parents[2]
STORED = ROOT / "benchmarks" / "results" / "cpu" / "full_size_vision.json"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("full_size_vision", ROOT / "benchmarks" / "full_size_vision.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_vision_side_keeps_its_last_width(script: Any) -> None:
    recipe = load_recipe(script.vision_of("builtin:come_vl"))
    assert recipe.language_model is None
    assert plan(recipe).visual == plan(load_recipe("builtin:come_vl")).visual
    encoders: list[Any] = [stream.encoder for stream in recipe.streams.values()]
    assert {encoder.weights for encoder in encoders} == {"random"}


def small(layers: int) -> dict[str, Any]:
    """One stream of many layers, all of them selected."""
    encoder = {"type": "small_vit", "image_size": 48, "patch": 6, "width": 64, "depth": layers, "heads": 2}
    return {
        "schema": 1,
        "name": "small",
        "summary": "One stream.",
        "streams": {"only": {"encoder": encoder, "select": {"type": "all"}, "steps": {"mix": {"type": "orthogonal"}}}},
    }


def test_streamed_layers_cost_the_same_however_many_they_are(script: Any) -> None:
    few, many = (script.measure(small(layers), torch.float32) for layers in (4, 12))
    for found in (few, many):
        stream = found["streams"]["only"]
        assert stream["hidden_state_bytes"] == 64 * 64 * 4
        assert 0 <= stream["extra_hidden_states"]["streamed"] <= 2
        assert found["output"] == {"shape": [1, 64, 64], "finite": True}
    kept = [found["streams"]["only"]["extra_hidden_states"]["all_layers_kept"] for found in (few, many)]
    assert kept[1] - kept[0] >= 7  # eight layers more


def test_the_stored_result_keeps_what_is_promised() -> None:
    found = json.loads(STORED.read_text(encoding="utf-8"))
    assert (found["recipe"], found["output"]) == ("come_vl", {"shape": [1, 144, 3584], "finite": True})
    assert found["parameters"]["streams.semantic.encoder"] == 413_016_048
    assert found["parameters"]["streams.spatial.encoder"] == 303_077_376
    for name, layers in (("semantic", 27), ("spatial", 14)):
        assert found["streams"][name]["layers"] == layers
        assert found["streams"][name]["extra_hidden_states"]["streamed"] <= 2
        assert found["streams"][name]["extra_hidden_states"]["all_layers_kept"] > layers - 3
    assert found["process_peak_gib"] < 24
