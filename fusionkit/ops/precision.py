"""Where half precision and TF32 must not reach: modules that keep fp32, and products at full precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_HALF = (torch.bfloat16, torch.float16)


def at_least_fp32(x: Tensor) -> Tensor:
    """fp32 for half-precision tensors; anything else as it is."""
    return x.float() if x.dtype in _HALF else x


def full_dtype() -> torch.dtype:
    """The dtype to create parameters in that must not be half precision: torch's default, but at least fp32."""
    return torch.promote_types(torch.get_default_dtype(), torch.float32)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Within it, new parameters have this dtype: what is built so is never held in another one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class FullPrecision(nn.Module):
    """A module whose own parameters and buffers stay at fp32 when the model is cast to a half type.

    `model.to(torch.bfloat16)` moves them and leaves their dtype alone; fp64 is let through. Submodules are cast as
    usual.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FullPrecision:
        if recurse:
            for child in self.children():
                child._apply(fn)

        def keep(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype in _HALF and tensor.dtype not in _HALF else moved

        super()._apply(keep, recurse=False)  # type: ignore[no-untyped-call]
        return self


@contextmanager
def tables_kept(model: nn.Module) -> Iterator[None]:
    """Within it, casting `model` to a half type leaves its computed tables (buffers that are not saved) at fp32.

    Rotary frequencies in bf16 turn far positions to wrong angles; loading from a checkpoint computes them at fp32.
    """
    kept = [
        (module, name, table)
        for module in model.modules()
        for name, table in module.named_buffers(recurse=False)
        if name in module._non_persistent_buffers_set and table.dtype not in _HALF
    ]
    yield
    for module, name, table in kept:
        cast = module.get_buffer(name)
        if cast.dtype in _HALF:
            setattr(module, name, table.to(cast.device))


def full_precision_names(model: nn.Module) -> list[str]:
    """The addresses of what stays at fp32 when `model` is cast to a half type."""
    return [
        f"{address}.{name}"
        for address, module in model.named_modules()
        if isinstance(module, FullPrecision)
        for name, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    ]


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Autocast off and fp32 products done in fp32 (no TF32, no bf16 passes), whatever the caller has set."""
    cuda: Any = torch.backends.cuda.matmul
    mkldnn: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # replaces the module by an object
    before = cuda.fp32_precision, mkldnn.fp32_precision
    cuda.fp32_precision = mkldnn.fp32_precision = "ieee"
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        cuda.fp32_precision, mkldnn.fp32_precision = before


@torch.library.custom_op("fusionkit::full_matmul", mutates_args=())
def full_matmul(a_LMK: Tensor, b_LKN: Tensor) -> Tensor:
    """Batched matrix product at full precision.

    An operator of its own because precision switches are process state, which a compiled graph cannot hold.
    """
    with full_precision(a_LMK.device):
        return a_LMK @ b_LKN


@full_matmul.register_fake
def _(a_LMK: Tensor, b_LKN: Tensor) -> Tensor:
    return a_LMK.new_empty(a_LMK.shape[0], a_LMK.shape[1], b_LKN.shape[2])


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    a_LMK, b_LKN = ctx.saved_tensors
    need_a, need_b = ctx.needs_input_grad
    return (full_matmul(grad, b_LKN.mT) if need_a else None, full_matmul(a_LMK.mT, grad) if need_b else None)


full_matmul.register_autograd(_backward, setup_context=_save)
