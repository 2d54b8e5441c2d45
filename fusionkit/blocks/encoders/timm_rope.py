"""Rotary tables of timm's encoders: made once for a grid, not in every call."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn


class KeptEmbedding:
    """Stands for a rotary module's `get_embed`: asks it once, for as long as its buffers stay as they are.

    timm lays DINOv3's grid out on the CPU and copies it to the device in every call. That copy waits for the device,
    and no CUDA graph can hold it.
    """

    def __init__(self, rope: nn.Module) -> None:
        self.rope = rope

    def __call__(self, *args: Any, **named: Any) -> Any:
        rope = cast(Any, self.rope)
        make = type(rope).get_embed
        buffers = tuple(rope.buffers())
        # Training may draw the grid anew; inference tensors count no writes; a compiled graph must not hold a fake one.
        if rope.training or torch.compiler.is_compiling() or any(buffer.is_inference() for buffer in buffers):
            return make(rope, *args, **named)
        asked = (repr((args, named)), tuple(buffer._version for buffer in buffers))
        if not _holds(rope.__dict__.get(KEPT), asked, buffers):
            with torch.inference_mode(False), torch.no_grad():
                setattr(rope, KEPT, (asked, buffers, make(rope, *args, **named)))
        return getattr(rope, KEPT)[2]


KEPT = "kept_embedding"
"""The attribute of the rotary module where the table is, with what it was made for."""


def keep_embeddings(model: nn.Module) -> None:
    """Give every rotary module of a timm model that has nothing to learn a `KeptEmbedding`."""
    for part in model.modules():
        if callable(getattr(part, "get_embed", None)) and next(part.parameters(), None) is None:
            cast(Any, part).get_embed = KeptEmbedding(part)


def _holds(kept: tuple[Any, tuple[Tensor, ...], Any] | None, asked: Any, buffers: tuple[Tensor, ...]) -> bool:
    if kept is None or kept[0] != asked or len(kept[1]) != len(buffers):
        return False
    return all(old is new for old, new in zip(kept[1], buffers, strict=True))
