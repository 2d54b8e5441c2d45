"""Capturing work on a CUDA device as a graph, which replays it without launches from Python."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from fusionkit.errors import UsageError
from fusionkit.model.crop_buckets import Tree

WARM_UP = 2
"""Runs on the stream of the capture before it, in which libraries choose their kernels and take their workspace."""


class CudaCapture:
    """A `Capture` by CUDA graphs, which share one pool of memory.

    They can share it because they are replayed one after the other, and results are copied out before the next; and
    because all are captured on one stream: torch gives memory of a pool to the stream only that it was freed on.

    Raises: UsageError where there is no CUDA device, for tensors elsewhere, and for work that cannot be captured.
    """

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise UsageError("Runtime.cuda_graphs: torch finds no CUDA device here; leave it off")
        self._graphs: weakref.WeakSet[Any] = weakref.WeakSet()
        self._sides: dict[torch.device, Any] = {}

    def __call__(self, work: Callable[[], Tree], device: torch.device) -> tuple[Tree, Callable[[], object]]:
        if device.type != "cuda":
            raise UsageError(f"Runtime.cuda_graphs: expected pixels on a CUDA device, got {device.type}")
        with torch.cuda.device(device), _without_autocast_cache():
            work()  # on the caller's stream, to which the memory of folded maps and tables then belongs
            if device not in self._sides:
                self._sides[device] = torch.cuda.Stream()
            side, caller = self._sides[device], torch.cuda.current_stream()
            side.wait_stream(caller)
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    work()
            caller.wait_stream(side)
            graph: Any = torch.cuda.CUDAGraph()
            # Of a graph that still lives: a pool ends with the last of its graphs.
            pool = next((other.pool() for other in self._graphs), None)
            try:
                # Back to the caller's stream after a failure, too: older versions of torch then stay on the capture's.
                # Other threads, such as those that load data, may go on using the device.
                with (
                    torch.cuda.stream(caller),
                    torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"),
                ):
                    held = work()
            except RuntimeError as error:
                _free_generator(device)
                raise UsageError(
                    f"Runtime.cuda_graphs: the vision side of this model cannot be captured ({error}); leave it off"
                ) from error
            self._graphs.add(graph)
            return held, graph.replay


def _free_generator(device: torch.device) -> None:
    """After a capture that failed, torch's generator may believe that it goes on, and draw nothing: give it a new state."""
    generator = torch.cuda.default_generators[device.index]
    with suppress(RuntimeError):  # what the capture failed of is what must be told
        generator.graphsafe_set_state(generator.clone_state())


@contextmanager
def _without_autocast_cache() -> Iterator[None]:
    """Autocast keeps cast weights until its context is left; a graph must cast for itself."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
