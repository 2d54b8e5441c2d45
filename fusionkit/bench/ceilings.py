"""What this machine can do here and now: a large matrix product and a large copy, measured in the run itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fusionkit.bench.timing import timer
from fusionkit.bench.variants import DTYPES, Setting
from fusionkit.bench.work import Work

REPEATS = 7
SIDE = {"cpu": 1024, "cuda": 8192}
COPY_BYTES = {"cpu": 256 * 2**20, "cuda": 4 * 2**30}


@dataclass(frozen=True, slots=True)
class Ceiling:
    """One limit; `best` is taken from the fastest repeat, since whatever disturbs it only makes it slower."""

    name: str
    seconds: tuple[float, ...]
    flops: int = 0
    bytes: int = 0

    @property
    def best(self) -> float:
        """FLOP or bytes per second."""
        return (self.flops or self.bytes) / min(self.seconds)


class _Product(nn.Module):
    def forward(self, pair: list[Tensor]) -> Tensor:
        return pair[0] @ pair[1]


class _Copy(nn.Module):
    def forward(self, pair: list[Tensor]) -> Tensor:
        return pair[0].copy_(pair[1])


def measure_ceilings(setting: Setting, scale: float = 1.0) -> tuple[Ceiling, Ceiling]:
    """Matrix product and copy, in the dtype of the run. `scale` shrinks both (a test of the harness, not of a machine)."""
    device, dtype = torch.device(setting.device), DTYPES[setting.dtype]
    side = max(16, int(SIDE[device.type] * scale))
    count = max(1024, int(COPY_BYTES[device.type] * scale)) // dtype.itemsize
    matrices = [torch.randn(side, side, device=device, dtype=dtype) for _ in range(2)]
    buffers = [torch.randn(count, device=device).to(dtype) for _ in range(2)]
    return (
        Ceiling("matmul", _times(_Product(), matrices, device), flops=2 * side**3),
        Ceiling("copy", _times(_Copy(), buffers, device), bytes=2 * count * dtype.itemsize),
    )


def _times(module: nn.Module, tensors: list[Tensor], device: torch.device) -> tuple[float, ...]:
    work = Work(module, {"input": tensors}, "fwd")
    time_once = timer(device)
    time_once(work)
    return tuple(time_once(work) for _ in range(REPEATS))
