"""What one call needs besides time: peak memory above what it was given, kernels, evaluations of matrix maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.profiler import ProfilerActivity, profile

from fusionkit.bench.work import Work

MAP_OPERATORS = (
    "aten::linalg_matrix_exp",
    "aten::_linalg_solve_ex",
    "aten::linalg_householder_product",
)
"""Each call of one of these makes orthogonal maps (an inverse is a solve inside)."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Of one call after a first one. `kernels` is None without a GPU; `maps` counts matrix functions and inverses."""

    peak_bytes: int
    kernels: int | None
    maps: int


def count(work: Work) -> Counts:
    """Profile one call; parameters, inputs and what earlier calls kept are not counted."""
    work.prepare()
    cuda = work.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    with profile(activities=activities, profile_memory=not cuda) as found:
        work.call()
        if cuda:
            torch.cuda.synchronize()
    # The raw events: building torch's tree of them costs more than most calls do.
    events = cast(Any, found.profiler).kineto_results.events()
    maps = sum(event.name() in MAP_OPERATORS for event in events)
    if cuda:
        kernels = sum(event.device_type().name == "CUDA" for event in events)
        return Counts(torch.cuda.max_memory_allocated() - before, kernels, maps)
    return Counts(_peak(events), None, maps)


def _peak(events: Any) -> int:
    """The most bytes the allocator held at a time, from its own events, in order of time."""
    changes = [event for event in events if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return int(peak)
