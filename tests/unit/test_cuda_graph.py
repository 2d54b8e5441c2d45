"""What is asked of CUDA, in which order: the capture of a graph and the queues of a device, on stand-ins for torch.cuda."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fusionkit.errors import UsageError
from fusionkit.model import cuda_graph, lanes
from fusionkit.model.crop_buckets import Tree
from fusionkit.model.cuda_graph import WARM_UP, CudaCapture
from fusionkit.model.lanes import CudaLanes

DEVICE = torch.device("cuda", 0)
MAIN = "main"


class FakeGenerator:
    """Its state is a list; that of a copy is another one."""

    def __init__(self) -> None:
        self.state: list[int] = []

    def clone_state(self) -> FakeGenerator:
        return FakeGenerator()

    def graphsafe_set_state(self, other: FakeGenerator) -> None:
        self.state = other.state


class FakeCuda:
    """As much of torch.cuda as a capture uses; writes down what it is asked for."""

    def __init__(self, fault: str = "") -> None:
        self.now, self.log, self.fault, self.sides = MAIN, list[tuple[Any, ...]](), fault, 0
        self.default_generators = (FakeGenerator(),)
        cuda = self

        class Stream:
            def __init__(self, device: Any = None) -> None:
                cuda.sides += 1
                self.name = f"side {cuda.sides}"

            def wait_stream(self, other: Any) -> None:
                cuda.log.append(("wait", self.name, other.name))

        class CUDAGraph:
            def __init__(self) -> None:
                self.own: Any = None

            def pool(self) -> Any:
                return self.own

            def replay(self) -> None:
                cuda.log.append(("replay",))

        self.Stream, self.CUDAGraph = Stream, CUDAGraph
        self.main = SimpleNamespace(name=MAIN, wait_stream=lambda other: self.log.append(("wait", MAIN, other.name)))

    def is_available(self) -> bool:
        return True

    def device(self, device: torch.device) -> AbstractContextManager[None]:
        self.log.append(("device", device))
        return nullcontext()

    def current_stream(self, device: Any = None) -> Any:
        return self.main

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.now = self.now, stream.name
        try:
            yield
        finally:
            self.now = before

    @contextmanager
    def graph(self, graph: Any, pool: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        graph.own = pool if pool is not None else object()
        before, self.now = self.now, f"capture on {stream.name}"
        yield
        if self.fault:  # the stream stays, as in torch 2.11
            raise RuntimeError(self.fault)
        self.now = before

    def work(self) -> Tree:
        self.log.append(("run", self.now, torch.is_autocast_cache_enabled()))
        return {"x": torch.zeros(1)}


def fake(monkeypatch: pytest.MonkeyPatch, fault: str = "") -> FakeCuda:
    made = FakeCuda(fault)
    for module in (cuda_graph, lanes):
        monkeypatch.setattr(module.torch, "cuda", made)
    return made


def test_a_capture_warms_up_beside_the_callers_work_and_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = fake(monkeypatch)
    _, replay = CudaCapture()(cuda.work, DEVICE)
    assert cuda.log == [
        ("device", DEVICE),
        ("run", MAIN, False),
        ("wait", "side 1", MAIN),
        *[("run", "side 1", False)] * WARM_UP,
        ("wait", MAIN, "side 1"),
        ("run", "capture on side 1", False),
    ]
    assert torch.is_autocast_cache_enabled(), "as before"
    replay()
    assert cuda.log[-1] == ("replay",)


def test_graphs_share_the_pool_of_one_that_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = fake(monkeypatch)
    capture = CudaCapture()
    replays = [capture(cuda.work, DEVICE)[1] for _ in range(3)]
    pools = {id(replay.__self__.own) for replay in replays}  # type: ignore[attr-defined]
    assert len(pools) == 1
    captures = [where for what, where, *_ in cuda.log if what == "run" and "capture" in where]
    assert captures == ["capture on side 1"] * 3, "memory of a pool is reused on the stream alone that it was freed on"
    ended = replays[0].__self__.own  # type: ignore[attr-defined]
    replays.clear()
    gc.collect()
    _, replay = capture(cuda.work, DEVICE)
    assert replay.__self__.own is not ended, "a pool whose graphs are all gone cannot be used again"  # type: ignore[attr-defined]


def test_work_that_cannot_be_captured_is_an_error_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = fake(monkeypatch, fault="operation not permitted when stream is capturing")
    before = cuda.default_generators[0].state
    with pytest.raises(UsageError) as refused:
        CudaCapture()(cuda.work, DEVICE)
    assert str(refused.value) == (
        "Runtime.cuda_graphs: the vision side of this model cannot be captured "
        "(operation not permitted when stream is capturing); leave it off"
    )
    assert cuda.now == MAIN, "what comes next would run beside the caller's work"
    assert cuda.default_generators[0].state is not before, "a state that was being captured draws nothing any more"
    assert torch.is_autocast_cache_enabled()


def test_errors_of_the_work_itself_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch)

    def work() -> Tree:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        CudaCapture()(work, DEVICE)
    assert torch.is_autocast_cache_enabled()


def test_lanes_are_streams_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = fake(monkeypatch)
    made = CudaLanes()
    assert made.current(DEVICE) is cuda.main
    side = made.side("spatial", DEVICE)
    assert made.side("spatial", DEVICE) is side
    assert made.side("other", DEVICE) is not side
    assert made.side("spatial", torch.device("cuda", 1)) is not side
    made.wait(side, cuda.main)
    made.wait(cuda.main, side)
    assert cuda.log == [("wait", "side 1", MAIN), ("wait", MAIN, "side 1")]
    with made.use(side):
        assert cuda.now == "side 1"
    recorded = []

    class Recorded(Tensor):
        def record_stream(self, s: Any) -> None:
            recorded.append(s)

    made.record(torch.zeros(1).as_subclass(Recorded), side)
    assert recorded == [side]
