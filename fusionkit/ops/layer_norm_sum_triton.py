"""The Triton kernels of `layer_norm_sum`. Imported only when they are chosen: Triton is no dependency.

Memory-bound work: a program takes one row (a token), reads it of one layer after the other, each number once, and keeps
the fp32 sum in registers. The next layer's numbers are under way while one is worked on. Unrolling the layers instead
made the compiler spill registers, so the loop is a loop, and finds its layers in a table of addresses. K layers,
T rows (crops times tokens), D width.
"""

# mypy: disable-error-code="import-untyped, import-not-found, untyped-decorator, no-untyped-def"
# Triton has no types, and its kernels take none; where it is not installed, this file is not imported.

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_WIDTH = 8192
"""The widest row that is held in registers; wider ones are read three times, twice of that from the cache."""
BLOCK = 4096
"""Columns at a time of a wider row."""


@triton.jit
def _write_addresses(table_K, layers_K, COUNT: tl.constexpr):
    """Addresses as a tensor: written by a kernel, because a copy from the host could not be captured in a CUDA graph."""
    for k in tl.static_range(COUNT):
        tl.store(table_K + k, layers_K[k].to(tl.int64))


@triton.jit
def _add_layers(
    total_TD, first, table_K, gain_KD, shift_D, tokens, crop_stride, token_stride, gain_layer_stride, gain_stride, eps,
    COUNT: tl.constexpr, WIDTH: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr, ALIGNED: tl.constexpr,
    FRESH: tl.constexpr, SHIFTED: tl.constexpr,
):  # fmt: skip
    """total += shift + Σ_k gain_k (z_k - mean) / √(var + eps) for one row: HEAD columns, and up to TAIL that remain."""
    row = tl.program_id(0).to(tl.int64)
    source = (row // tokens) * crop_stride + (row % tokens) * token_stride
    total_D = total_TD + row * WIDTH
    head = tl.arange(0, HEAD)
    sum_head = tl.zeros([HEAD], tl.float32)
    if SHIFTED:
        sum_head += tl.load(shift_D + head)
    if not FRESH:
        sum_head += tl.load(total_D + head)
    x_head = tl.load(first + source + head)
    if TAIL > 0:
        tail = HEAD + tl.arange(0, TAIL)
        inside = tail < WIDTH
        sum_tail = tl.zeros([TAIL], tl.float32)
        if SHIFTED:
            sum_tail += tl.load(shift_D + tail, mask=inside, other=0.0)
        if not FRESH:
            sum_tail += tl.load(total_D + tail, mask=inside, other=0.0)
        x_tail = tl.load(first + source + tail, mask=inside, other=0.0)
    for k in range(COUNT):
        gain = gain_KD + k * gain_layer_stride
        later_head = x_head
        if COUNT > 1:
            layer = tl.load(table_K + tl.minimum(k + 1, COUNT - 1)).to(tl.pointer_type(first.dtype.element_ty))
            if ALIGNED:
                layer = tl.multiple_of(layer, 16)
            later_head = tl.load(layer + source + head)
        number_head = x_head.to(tl.float32)
        number = tl.sum(number_head, axis=0)
        if TAIL > 0:
            later_tail = x_tail
            if COUNT > 1:
                later_tail = tl.load(layer + source + tail, mask=inside, other=0.0)
            number_tail = x_tail.to(tl.float32)
            number += tl.sum(number_tail, axis=0)
        mean = number / WIDTH
        centred_head = number_head - mean
        square = tl.sum(centred_head * centred_head, axis=0)
        if TAIL > 0:
            centred_tail = tl.where(inside, number_tail - mean, 0.0)
            square += tl.sum(centred_tail * centred_tail, axis=0)
        scale = 1.0 / tl.sqrt(square / WIDTH + eps)
        sum_head += centred_head * scale * tl.load(gain + head * gain_stride)
        x_head = later_head
        if TAIL > 0:
            sum_tail += centred_tail * scale * tl.load(gain + tail * gain_stride, mask=inside, other=0.0)
            x_tail = later_tail
    tl.store(total_D + head, sum_head)
    if TAIL > 0:
        tl.store(total_D + tail, sum_tail, mask=inside)


@triton.jit
def _add_wide_layer(
    total_TD, layer, gain_D, shift_D, tokens, crop_stride, token_stride, gain_stride, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, FRESH: tl.constexpr, SHIFTED: tl.constexpr,
):  # fmt: skip
    """The same for one layer, BLOCK columns at a time."""
    row = tl.program_id(0).to(tl.int64)
    source = layer + (row // tokens) * crop_stride + (row % tokens) * token_stride
    total_D = total_TD + row * WIDTH
    part = tl.zeros([BLOCK], tl.float32)
    for start in range(0, WIDTH, BLOCK):
        column = start + tl.arange(0, BLOCK)
        part += tl.load(source + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    mean = tl.sum(part, axis=0) / WIDTH
    part = tl.zeros([BLOCK], tl.float32)
    for start in range(0, WIDTH, BLOCK):
        column = start + tl.arange(0, BLOCK)
        number = tl.load(source + column, mask=column < WIDTH, other=0.0).to(tl.float32)
        centred = tl.where(column < WIDTH, number - mean, 0.0)
        part += centred * centred
    scale = 1.0 / tl.sqrt(tl.sum(part, axis=0) / WIDTH + eps)
    for start in range(0, WIDTH, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < WIDTH
        number = tl.load(source + column, mask=inside, other=0.0).to(tl.float32)
        result = (number - mean) * scale * tl.load(gain_D + column * gain_stride, mask=inside, other=0.0)
        if SHIFTED:
            result += tl.load(shift_D + column, mask=inside, other=0.0)
        if not FRESH:
            result += tl.load(total_D + column, mask=inside, other=0.0)
        tl.store(total_D + column, result, mask=inside)


def add_layers(
    layers: Sequence[Tensor], gain_KD: Tensor, shift_D: Tensor | None, total_BND: Tensor | None, eps: float
) -> Tensor:
    """`layer_norm_sum` on a device that Triton serves; the arguments have been checked. Writes to the total.

    Shapes: layers K of [B, N, D]; gain_KD fp32, any strides; shift_D, the layers' together, and total_BND fp32, contiguous.
    """
    first, fresh = layers[0], total_BND is None
    total = torch.empty(first.shape, dtype=torch.float32, device=first.device) if total_BND is None else total_BND
    if not total.numel():
        return total
    if first.stride(-1) != 1 or len({x_BND.stride() for x_BND in layers}) > 1:
        layers = [x_BND.contiguous() for x_BND in layers]  # as torch's LayerNorm does; one set of strides serves all
    # Triton launches on the current device, whatever the tensors are on.
    with torch.cuda.device(first.device) if first.is_cuda else nullcontext():
        (_launch if first.shape[-1] <= MAX_WIDTH else _launch_wide)(total, layers, gain_KD, shift_D, fresh, eps)
    return total


def _launch(
    total_BND: Tensor, layers: Sequence[Tensor], gain_KD: Tensor, shift_D: Tensor | None, fresh: bool, eps: float
) -> None:
    first, (crops, tokens, width) = layers[0], total_BND.shape
    table = torch.empty(len(layers), dtype=torch.int64, device=first.device)
    if len(layers) > 1:
        write: Any = _write_addresses
        write[(1,)](table, tuple(layers), COUNT=len(layers), num_warps=1)
    crop_stride, token_stride, _ = first.stride()
    kernel: Any = _add_layers
    kernel[(crops * tokens,)](
        total_BND, first, table, gain_KD, shift_D, tokens, crop_stride, token_stride, *gain_KD.stride(), eps,
        COUNT=len(layers), ALIGNED=all(x_BND.data_ptr() % 16 == 0 for x_BND in layers), FRESH=fresh,
        SHIFTED=shift_D is not None, **blocks(width),
    )  # fmt: skip


def blocks(width: int) -> dict[str, int]:
    """How a row is laid over a program: few idle lanes, and one warp up to 1536 columns, which then never waits for others."""
    head = 1 << (width.bit_length() - 1)
    tail = triton.next_power_of_2(width - head) if width > head else 0
    return {"WIDTH": width, "HEAD": head, "TAIL": tail, "num_warps": max(1, triton.next_power_of_2(-(-width // 1536)))}


def _launch_wide(
    total_BND: Tensor, layers: Sequence[Tensor], gain_KD: Tensor, shift_D: Tensor | None, fresh: bool, eps: float
) -> None:
    crops, tokens, width = total_BND.shape
    kernel: Any = _add_wide_layer
    for k, layer in enumerate(layers):
        crop_stride, token_stride, _ = layer.stride()
        kernel[(crops * tokens,)](
            total_BND, layer, gain_KD[k], shift_D, tokens, crop_stride, token_stride, gain_KD.stride(1), eps,
            WIDTH=width, BLOCK=BLOCK, FRESH=fresh and k == 0, SHIFTED=shift_D is not None and k == 0, num_warps=8,
        )  # fmt: skip
