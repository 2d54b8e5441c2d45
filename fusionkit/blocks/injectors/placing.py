"""Putting visual vectors at the marked positions of a sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from fusionkit.errors import ShapeError


def check_placing(embeds_BTE: Tensor, visual_VE: Tensor, mask_BT: Tensor, address: str) -> None:
    """Raise ShapeError unless there is one visual vector of the right width per marked position."""
    name = address or "injector"
    if visual_VE.shape[-1] != embeds_BTE.shape[-1]:
        raise ShapeError(
            f"{name}: visual vectors have width {visual_VE.shape[-1]}, embeddings {embeds_BTE.shape[-1]}",
            hint="end the fusion with a linear or mlp step of the language model's width",
        )
    if mask_BT.shape != embeds_BTE.shape[:2]:
        raise ShapeError(f"{name}: expected a mask of shape {tuple(embeds_BTE.shape[:2])}, got {tuple(mask_BT.shape)}")
    # Counting waits for the device, which a compiled graph must not do; masked_scatter itself refuses too few.
    if not torch.compiler.is_compiling() and mask_BT.device.type != "meta":
        marked = int(mask_BT.sum())
        if marked != visual_VE.shape[0]:
            raise ShapeError(f"{name}: {marked} <image> positions for {visual_VE.shape[0]} visual vectors")
