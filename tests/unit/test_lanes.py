"""Encoders side by side: nothing is read before it is made, and no memory is given away under anyone.

What makes queues of a device is a stand-in here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from vision_side import build, pixels, see

from fusionkit.errors import ShapeError
from fusionkit.geometry import Grid
from fusionkit.model import vision
from fusionkit.model.crop_buckets import (
    tensors_of,
)
from fusionkit.model.lanes import Work, run_side_by_side
from fusionkit.model.runtime import Runtime
from fusionkit.ops.tokens import Tokens

# ---------------------------------------------------------------------------------------------- side by side
MAIN = "main"


class LoggedLanes:
    """Lanes of no device that write down what is asked of them."""

    def __init__(self) -> None:
        self.now, self.log, self.names = MAIN, list[tuple[str, ...]](), dict[int, str]()

    def name(self, tensor: Tensor) -> str:
        return self.names.setdefault(id(tensor), f"tensor {len(self.names)}")

    def ran(self, reads: Any, writes: Any) -> None:
        """Work of the current lane: it reads some tensors and makes others."""
        self.log += [("read", self.name(tensor), self.now) for tensor in reads]
        self.log += [("make", self.name(tensor), self.now) for tensor in writes]

    def current(self, device: torch.device) -> str:
        return self.now

    def side(self, name: str, device: torch.device) -> str:
        return f"side {name}"

    def wait(self, waiting: str, awaited: str) -> None:
        self.log.append(("wait", waiting, awaited))

    def record(self, tensor: Tensor, lane: str) -> None:
        self.log.append(("record", self.name(tensor), lane))

    @contextmanager
    def use(self, lane: str) -> Iterator[None]:
        before, self.now = self.now, lane
        try:
            yield
        finally:
            self.now = before


def hazards(log: list[tuple[str, ...]]) -> set[str]:
    """What could go wrong on a device, from the order of a log: reads before the work that makes a tensor has ended, and
    memory given to others while a lane that did not make it still reads it."""
    known: dict[str, set[str]] = {}  # lane -> tensors that are surely made when its next work begins
    maker: dict[str, str] = {}
    recorded = {(tensor, lane) for kind, tensor, lane in log if kind == "record"}
    found = set()
    for kind, first, second in log:
        if kind == "make":
            maker[first] = second
            known.setdefault(second, set()).add(first)
        elif kind == "wait":
            known.setdefault(first, set()).update(known.get(second, set()))
        elif kind == "read":
            if first not in known.get(second, set()):
                found.add(f"{second} reads {first} before it is made")
            if maker[first] != second and (first, second) not in recorded:
                found.add(f"{first} may be freed under {second}")
    return found


def run_logged(names: tuple[str, ...] = ("a", "b", "c"), failing: str = "") -> LoggedLanes:
    lanes = LoggedLanes()
    inputs = {name: [torch.zeros(1), torch.ones(1)] for name in names}
    lanes.ran([], [tensor for each in inputs.values() for tensor in each])

    def work(name: str) -> Work:
        def run() -> Tokens:
            if name == failing:
                raise ShapeError(f"{name} fails")
            made = Tokens(torch.zeros(1, 1, 1), Grid(1, 1), valid_BN=torch.ones(1, 1), coverage_BN=torch.ones(1, 1))
            lanes.ran(inputs[name], tensors_of({name: made}))
            return made

        return Work(inputs[name], run)

    found = run_side_by_side({name: work(name) for name in names}, lanes)
    assert list(found) == list(names)
    lanes.ran([tensor for tokens in found.values() for tensor in tensors_of({"": tokens})], [])
    return lanes


def test_results_are_waited_for_and_memory_is_recorded() -> None:
    log = run_logged().log
    assert hazards(log) == set()
    assert {entry[2] for entry in log if entry[0] == "make"} == {MAIN, "side b", "side c"}


def test_no_wait_and_no_record_can_be_left_out() -> None:
    log = run_logged().log
    needed = [number for number, entry in enumerate(log) if entry[0] in ("wait", "record")]
    assert len(needed) == 2 * (2 + 2 + 3), "two side lanes: in and out, two inputs, three results"
    for number in needed:
        assert hazards(log[:number] + log[number + 1 :]), f"{log[number]} is not needed, or the check does not see it"


def test_lanes_are_joined_when_an_encoder_fails() -> None:
    lanes = LoggedLanes()
    tensor = torch.zeros(1)

    def fail() -> Tokens:
        raise ShapeError("wrong")

    def fine() -> Tokens:
        return Tokens(torch.zeros(1, 1, 1), Grid(1, 1))

    for works in (
        {"a": Work([tensor], fail), "b": Work([tensor], fine)},
        {"a": Work([tensor], fine), "b": Work([tensor], fail)},
    ):
        lanes.log.clear()
        with pytest.raises(ShapeError, match="wrong"):
            run_side_by_side(works, lanes)
        assert lanes.log[-1] == ("wait", MAIN, "side b")
        assert lanes.now == MAIN


def test_a_model_runs_its_encoders_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[LoggedLanes] = []

    def lanes() -> LoggedLanes:
        made.append(LoggedLanes())
        return made[-1]

    monkeypatch.setattr(vision, "CudaLanes", lanes)
    model = build()
    with torch.no_grad():
        expected = see(model, pixels(3))
        model.runtime = Runtime(parallel_encoders=True)
        found = see(model, pixels(3))
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert [entry for entry in made[0].log if entry[0] == "wait"] == [
            ("wait", "side spatial", MAIN),
            ("wait", MAIN, "side spatial"),
        ]
        made[0].log.clear()
        model.encode_streams(pixels(1), names=["spatial"])
        assert made[0].log == [], "one encoder has nobody beside it"
    see(model, pixels(1))
    assert made[0].log == [], "with grad, encoders run one after the other"
    assert copy.deepcopy(model).runtime == Runtime(parallel_encoders=True)
