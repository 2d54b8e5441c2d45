"""The ways to execute our own block: attention backends, kernels of SDPA, Triton, torch.compile, CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fusionkit.bench.peers.peer import UnsuitableError
from fusionkit.bench.subject import call
from fusionkit.bench.work import Work
from fusionkit.errors import UsageError
from fusionkit.ops.attention import BACKENDS as ATTENTION
from fusionkit.ops.attention import UsesAttention, use_attention_backend
from fusionkit.ops.layer_norm_sum import UsesLayerNormSum, use_layer_norm_sum

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
"""Kernels inside torch's scaled_dot_product_attention, forced one at a time."""

BACKENDS = (*ATTENTION, *KERNELS, "triton", "compile", "graph")
"""Values of `--backend`."""

Around = Callable[[], AbstractContextManager[Any]]


def check_backends(names: tuple[str, ...]) -> None:
    """Raises UsageError for a name that nobody knows."""
    if wrong := [name for name in names if name not in BACKENDS]:
        raise UsageError(f"--backend {wrong[0]}: unknown; expected some of {', '.join(BACKENDS)}")


def put_under(module: nn.Module, backend: str, mode: str) -> tuple[nn.Module, Around]:
    """The module under a backend, and the context to call it in.

    Raises UnsuitableError where the backend makes no difference or is not to be had.
    """
    if backend in ATTENTION or backend in KERNELS:
        if not any(isinstance(part, UsesAttention) for part in module.modules()):
            raise UnsuitableError(f"backend {backend}: the block has no attention of fusionkit's")
        try:
            use_attention_backend(module, backend if backend in ATTENTION else "sdpa")
        except UsageError as error:
            raise UnsuitableError(str(error)) from error
        if backend in KERNELS:
            kernel = KERNELS[backend]
            return module, lambda: sdpa_kernel(kernel)
    if backend == "triton":
        _sum_by_kernel(module, mode)
    if backend == "graph" and mode != "fwd":
        raise UnsuitableError("backend graph: CUDA graphs are captured of inference only (--mode fwd)")
    return module, nullcontext


def _sum_by_kernel(module: nn.Module, mode: str) -> None:
    if not any(isinstance(part, UsesLayerNormSum) and part.sums_layer_norms for part in module.modules()):
        raise UnsuitableError("backend triton: the block has no sum of LayerNorms")
    if mode != "fwd":
        raise UnsuitableError("backend triton: its kernel has no backward (--mode fwd)")
    try:
        use_layer_norm_sum(module, "triton")
    except UsageError as error:
        raise UnsuitableError(str(error)) from error


class CompiledWork(Work):
    """Compiled by torch.compile, at inference after a forward that folds: a compiled one uses what is folded, and folds nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode == "fwd":
            with torch.no_grad():
                call(self.module, self.arguments)
        self.module.compile()


class GraphWork(Work):
    """Inference replayed from a CUDA graph: no launches from Python."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.device.type != "cuda":
            raise UnsuitableError("backend graph: CUDA graphs need a CUDA device")
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(side):
            for _ in range(3):
                call(self.module, self.arguments)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(self.graph):
            self.held: dict[str, Tensor] = call(self.module, self.arguments)

    def _call(self) -> dict[str, Tensor]:
        self.graph.replay()
        return self.held


WORKS: dict[str, type[Work]] = {"compile": CompiledWork, "graph": GraphWork}
"""What runs a backend that is more than a setting of the module."""
