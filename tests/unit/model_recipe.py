"""A recipe small enough that every test may build it."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

from fusionkit.geometry import Box, Size
from fusionkit.sample import Provenance, Sample, Turn

DECODER = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "pad_token_id": 0,
}
"""Sizes of a decoder small enough for every test."""


def recipe(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "schema": 1,
        "name": "small",
        "summary": "Two small encoders and a small decoder.",
        "sequence_length": 128,
        "cropper": {"type": "resize", "size": 24},
        "streams": {
            "semantic": {
                "encoder": {"type": "small_vit", "image_size": 24, "patch": 4, "width": 16, "depth": 2, "heads": 2},
                "select": {"type": "all"},
                "steps": {"mix": {"type": "orthogonal"}},
            },
            "spatial": {
                "encoder": {"type": "small_vit", "image_size": 24, "patch": 6, "width": 12, "depth": 1, "heads": 2},
                "select": {"type": "last"},
                "steps": {"widen": {"type": "linear", "width": {"like": "semantic"}}},
            },
        },
        "fusion": {
            "align": {"type": "rope_cross_attention", "query": "semantic", "memory": "spatial", "heads": 2},
            "pool": {"type": "average_pool", "window": [2, 2]},
            "project": {"type": "mlp", "hidden": 32},
        },
        "injectors": {"visual": {"type": "replace"}},
        "language_model": {
            "type": "token_shift",
            "tokenizer": "builtin:tiny",
            "config": {"model_type": "llama", **DECODER, "tie_word_embeddings": True},
            "new_rows": {"init": "ordinal", "std": 0.3},
        },
        "box_tokenizer": {"type": "coordinate_bins", "bins": 20},
    }
    return base | changes


def decoder(model_type: str = "qwen2", **fields: Any) -> dict[str, Any]:
    """A `causal` language model small enough for every test; pass `language_model=decoder("llama")` to `recipe`."""
    config = {"model_type": model_type, **DECODER, **fields}
    return {"type": "causal", "tokenizer": "builtin:tiny", "config": config}


def picture(seed: int = 0, size: tuple[int, int] = (40, 30)) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def sample(seed: int = 0, *turns: Turn, size: tuple[int, int] = (40, 30)) -> Sample:
    image = picture(seed, size)
    asked = turns or (Turn("box the red circle", (Box(4, 3, 20, 21),), "box"), Turn("count red", ("2",), "count"))
    return Sample(lambda: image, Size(*size), asked, Provenance("test", seed))
