"""A vision side of two small encoders, for tests of how it is executed."""

from __future__ import annotations

from typing import Any

import torch
from model_recipe import recipe
from torch import Tensor

import fusionkit


def build(**changes: Any) -> Any:
    """The vision side of the small recipe, on which nothing is at its start."""
    parts = recipe() | changes
    for name in ("injectors", "language_model", "box_tokenizer", "sequence_length"):
        parts.pop(name, None)
    torch.manual_seed(0)
    model = fusionkit.build(parts).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def pixels(crops: int, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(crops, 3, 24, 24, generator=generator) for name in ("semantic", "spatial")}


def see(model: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """All that the vision side gives: the streams' tokens and the fused ones."""
    streams = model.encode_streams(given)
    return {**{name: tokens.x_BND for name, tokens in streams.items()}, "fused": model.fuse(streams).x_BND}


def close(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float = 4e-6) -> None:
    assert list(found) == list(expected)
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=atol)
