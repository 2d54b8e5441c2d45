"""Building without reading weights changes where they come from, and nothing else."""

from __future__ import annotations

import torch

import fusionkit
from fusionkit.model.parts import without_weights
from fusionkit.registry import spec


def test_only_sources_of_weights_are_replaced() -> None:
    timm = spec("encoders", "timm").config.model_validate({"type": "timm", "model": "vit_tiny_patch16_224"})
    assert without_weights(timm).weights == "random"  # type: ignore[attr-defined]
    total = spec("connectors", "weighted_sum").config.model_validate({"inputs": ("a", "b"), "weights": (0.25, 0.75)})
    assert without_weights(total) is total


def test_a_model_with_fixed_weights_is_the_same_when_its_weights_are_not_read() -> None:
    join = {"type": "weighted_sum", "inputs": ["semantic", "other"], "weights": [0.25, 0.75]}
    stream = {"encoder": {"type": "small_vit"}, "select": {"type": "last"}}
    recipe = {
        "schema": 1,
        "name": "joined",
        "streams": {"semantic": stream, "other": stream},
        "fusion": {"join": join},
    }
    model = fusionkit.build(recipe, device="meta")
    assert model.fusion["join"].weights() == (0.25, 0.75)
    assert all(parameter.device == torch.device("meta") for parameter in model.parameters())
