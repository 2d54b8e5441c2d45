"""Σ_k LN(z_k; g_k, b_k) over layers, with a choice of how it is executed.

`eager` (default) is one LayerNorm and one addition a layer; `triton` reads every layer once and does the rest in
registers. Both compute in fp32 from the layers as they are. One that cannot serve is an error that says why.
K layers, B crops, N tokens, D width.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from fusionkit.errors import ShapeError, UsageError
from fusionkit.ops.mixing import EPS, normalise, running_sum
from fusionkit.ops.precision import at_least_fp32

BACKENDS = ("eager", "triton")
"""Names for `layer_norm_sum(backend=...)` and `Runtime.layer_norm_sum`."""

_SERVED = (torch.float32, torch.bfloat16, torch.float16)


class UsesLayerNormSum:
    """Mixin of modules whose sum of LayerNorms the runtime chooses; `sums_layer_norms` says which of them have one."""

    layer_norm_sum_backend: str = "eager"
    sums_layer_norms: bool = False


def layer_norm_sum(
    layers: Sequence[Tensor],
    gain_KD: Tensor,
    shift_KD: Tensor | None = None,
    total_BND: Tensor | None = None,
    *,
    backend: str = "eager",
) -> Tensor:
    """total + Σ_k (gain_k (z_k - mean) / √(variance + 1e-5) + shift_k), at least fp32.

    A weighted sum has its weights in gain and shift: w LN(x; g, b) = LN(x; w g, w b). Without an affine part, give the
    weights as gain [K, 1] and no shift.

    Shapes: layers K of [B, N, D], any strides; gain_KD [K, D] or [K, 1]; shift_KD [K, D] or None; total_BND [B, N, D] of
    an earlier call, or None. Without grad the total is written to, so it must be the caller's own.

    The backends round the same fp32 sum in another order, no more: of layers whose mean is not far above their
    deviation, |difference| <= 1e-6 Σ_k (|gain_k| (1 + |LN_k|) + |shift_k|), whatever the layers' dtype. With grad, and
    inside torch.compile (which fuses by itself), every backend is the eager one: the kernel has no backward.

    Raises: ShapeError for layers that differ; UsageError if the backend is unknown, missing or cannot serve these tensors.

    Example: `layer_norm_sum([x, y], torch.tensor([[0.3], [0.7]]))`
    """
    if backend not in BACKENDS:
        raise UsageError(f"unknown layer_norm_sum '{backend}'; expected one of {', '.join(BACKENDS)}")
    _check(layers, gain_KD, shift_KD, total_BND)
    if backend == "eager" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return _eager(layers, gain_KD, shift_KD, total_BND)
    _require_triton(layers)
    kernels: Any = importlib.import_module("fusionkit.ops.layer_norm_sum_triton")
    gain_KD = gain_KD.float().expand(-1, layers[0].shape[-1])
    shift_D = None if shift_KD is None else (shift_KD[0] if len(layers) == 1 else shift_KD.float().sum(0)).float()
    total_BND = None if total_BND is None else total_BND.float().contiguous()
    result: Tensor = kernels.add_layers(layers, gain_KD, shift_D, total_BND, EPS)
    return result


def use_layer_norm_sum(model: nn.Module, backend: str) -> None:
    """Make every sum of LayerNorms in `model` use `backend`.

    Raises: UsageError if it is unknown or not available on this machine.
    """
    if reason := why_unavailable(backend):
        raise UsageError(f"layer_norm_sum '{backend}' cannot be used: {reason}")
    for module in model.modules():
        if isinstance(module, UsesLayerNormSum):
            module.layer_norm_sum_backend = backend


def why_unavailable(backend: str) -> str:
    """Why a backend cannot be used on this machine at all, or the empty string if it can."""
    if backend not in BACKENDS:
        return f"it is unknown; expected one of {', '.join(BACKENDS)}"
    if backend == "triton":
        if importlib.util.find_spec("triton") is None:
            return "the package triton is not installed (torch for Linux with CUDA brings it; or use eager)"
        if not (torch.cuda.is_available() or _interpreted()):
            return "Triton runs on CUDA devices only and there is none (use eager)"
    return ""


def _interpreted() -> bool:
    """Whether Triton was told to run kernels in Python, on CPU tensors: slow, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _check(layers: Sequence[Tensor], gain_KD: Tensor, shift_KD: Tensor | None, total_BND: Tensor | None) -> None:
    shape = layers[0].shape if layers else torch.Size()
    if len(shape) != 3 or any(x_BND.shape != shape for x_BND in layers):
        raise ShapeError(
            "layer_norm_sum: expected one or more layers of one shape [B, N, D], "
            f"got {[list(x_BND.shape) for x_BND in layers]}"
        )
    count, width = len(layers), shape[-1]
    if gain_KD.shape not in ((count, width), (count, 1)):
        wanted = f"[{count}, {width}] or [{count}, 1]"
        raise ShapeError(f"layer_norm_sum: expected a gain {wanted}, got {list(gain_KD.shape)}")
    if shift_KD is not None and shift_KD.shape != (count, width):
        raise ShapeError(f"layer_norm_sum: expected a shift [{count}, {width}], got {list(shift_KD.shape)}")
    if total_BND is not None and total_BND.shape != shape:
        raise ShapeError(f"layer_norm_sum: expected a total {list(shape)}, got {list(total_BND.shape)}")


def _eager(layers: Sequence[Tensor], gain_KD: Tensor, shift_KD: Tensor | None, total_BND: Tensor | None) -> Tensor:
    width = layers[0].shape[-1]
    for k, x_BND in enumerate(layers):
        shift_D = None if shift_KD is None else shift_KD[k]
        total_BND = running_sum(total_BND, [normalise(at_least_fp32(x_BND), gain_KD[k].expand(width), shift_D)])
    return cast(Tensor, total_BND)  # there is at least one layer


def _require_triton(layers: Sequence[Tensor]) -> None:
    if reason := why_unavailable("triton"):
        raise UsageError(f"layer_norm_sum 'triton' cannot be used: {reason}")
    x_BND = layers[0]
    if x_BND.device.type != "cuda" and not _interpreted():
        raise UsageError(f"layer_norm_sum 'triton' needs CUDA tensors, got {x_BND.device.type} (use eager)")
    if any(layer.dtype != x_BND.dtype or layer.dtype not in _SERVED for layer in layers):
        got = ", ".join(sorted({str(layer.dtype).removeprefix("torch.") for layer in layers}))
        raise UsageError(f"layer_norm_sum 'triton' takes float32, bfloat16 or float16 alike, got {got} (use eager)")
