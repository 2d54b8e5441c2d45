"""Encoders side by side: each on a stream of the device of its own, joined before anything reads their results.

A lane is a queue of the device's work (`torch.cuda.Stream`; the word stream means an encoder with its steps here). What
makes lanes, waits and records is handed in: CUDA, or a stand-in in tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fusionkit.errors import UsageError
from fusionkit.model.crop_buckets import tensors_of
from fusionkit.ops.tokens import Tokens


class Work(NamedTuple):
    """What one encoder does: `run` reads `inputs` on their device."""

    inputs: Sequence[Tensor]
    run: Callable[[], Tokens]


class Lanes(Protocol):
    """Queues of a device's work."""

    def current(self, device: torch.device) -> Any:
        """The lane that the caller's work is on."""

    def side(self, name: str, device: torch.device) -> Any:
        """A lane of its own for `name`, the same at every call."""

    def wait(self, waiting: Any, awaited: Any) -> None:
        """What comes next on `waiting` begins after all that is on `awaited` by now."""

    def use(self, lane: Any) -> AbstractContextManager[Any]:
        """Work within it is put on `lane`."""

    def record(self, tensor: Tensor, lane: Any) -> None:
        """The memory of `tensor` is not given to others before what is on `lane` by the time it is freed has ended."""


def run_side_by_side(works: Mapping[str, Work], lanes: Lanes) -> dict[str, Tokens]:
    """Run the first work on the caller's lane and each other on a side lane; what comes after waits for all of them.

    Also when one of them raises: the caller may free what the others still read.
    """
    (first, own), *others = works.items()
    found: dict[str, Tokens] = {}
    opened: list[tuple[Any, Any]] = []
    try:
        for name, work in others:
            device = work.inputs[0].device
            main, side = lanes.current(device), lanes.side(name, device)
            lanes.wait(side, main)  # the inputs and the weights are made on the caller's lane
            opened.append((main, side))
            for tensor in work.inputs:
                lanes.record(tensor, side)
            with lanes.use(side):
                found[name] = work.run()
        found[first] = own.run()
    finally:
        for main, side in opened:
            lanes.wait(main, side)
    for (name, _), (main, _) in zip(others, opened, strict=True):
        for tensor in tensors_of({name: found[name]}):
            lanes.record(tensor, main)  # made on a side lane, read and freed on the caller's
    return {name: found[name] for name in works}


class CudaLanes:
    """Lanes of CUDA devices. Raises UsageError where there is none, and for tensors elsewhere."""

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise UsageError("Runtime.parallel_encoders: torch finds no CUDA device here; leave it off")
        self._sides: dict[tuple[str, torch.device], Any] = {}

    def current(self, device: torch.device) -> Any:
        return torch.cuda.current_stream(self._cuda(device))

    def side(self, name: str, device: torch.device) -> Any:
        key = (name, self._cuda(device))
        if key not in self._sides:
            self._sides[key] = torch.cuda.Stream(device)
        return self._sides[key]

    def wait(self, waiting: Any, awaited: Any) -> None:
        waiting.wait_stream(awaited)

    def use(self, lane: Any) -> AbstractContextManager[Any]:
        return torch.cuda.stream(lane)

    def record(self, tensor: Tensor, lane: Any) -> None:
        tensor.record_stream(lane)

    @staticmethod
    def _cuda(device: torch.device) -> torch.device:
        if device.type != "cuda":
            raise UsageError(f"Runtime.parallel_encoders: expected pixels on a CUDA device, got {device.type}")
        return device
