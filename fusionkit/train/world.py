"""The processes that train together: who they are, and the few things they must agree on.

`torchrun` and `accelerate launch` start them and say so in the environment; without either there is one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from accelerate import PartialState
from torch import distributed

from fusionkit.errors import UsageError


def join() -> None:
    """Meet the other processes, if there are any: NCCL on GPUs, gloo on CPUs. May be called again."""
    on_cpu = not torch.cuda.is_available()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # One thread each unless said otherwise: processes of one machine share its cores.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        PartialState(cpu=on_cpu)


def size() -> int:
    """How many processes train together."""
    return int(distributed.get_world_size()) if _together() else 1


def is_main() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return not _together() or distributed.get_rank() == 0


def wait() -> None:
    """Go on when all processes are here."""
    if _together():
        distributed.barrier()


def any_of(flag: bool) -> bool:
    """Whether any process says so; all must ask at the same point."""
    return bool(sums([float(flag)])[0])


def sums(values: Sequence[float]) -> list[float]:
    """Each value added up over all processes; all must ask at the same point, with as many values."""
    if not _together():
        return list(values)
    total = torch.tensor(values, dtype=torch.float64, device=PartialState().device)
    distributed.all_reduce(total)
    return [float(value) for value in total]


def share(batch_size: int, micro_batch_size: int | None) -> tuple[int, int]:
    """Pictures per forward pass of a process, and forward passes per optimizer step.

    Raises UsageError when the processes cannot share the batch evenly.
    """
    world = size()
    if batch_size % world:
        raise UsageError(
            f"train.global_batch_size {batch_size} does not divide by {world} processes "
            f"(set {batch_size // world * world or world} or {(batch_size // world + 1) * world}, or use another number of processes)"
        )
    micro = micro_batch_size or batch_size // world
    if batch_size % (micro * world):
        raise UsageError(
            f"train.global_batch_size {batch_size} is not a multiple of micro_batch_size {micro} x {world} processes"
        )
    return micro, batch_size // (micro * world)


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()
