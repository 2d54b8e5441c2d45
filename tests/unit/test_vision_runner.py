"""The ways to execute the vision side that need a GPU, as far as a CPU can tell: buckets, captures, waits.

What captures and what makes queues of a device are stand-ins here; the real ones run in the tests marked `gpu`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from model_recipe import recipe
from torch import Tensor, nn

import fusionkit
from fusionkit.bench.cases import cases_from_recipe
from fusionkit.bench.run import run
from fusionkit.bench.variants import Setting
from fusionkit.errors import ShapeError, UsageError
from fusionkit.geometry import Grid
from fusionkit.model import vision
from fusionkit.model.crop_buckets import (
    Tree,
    bucket_for,
    crops_of,
    default_buckets,
    join,
    signature,
    split,
    tensors_of,
)
from fusionkit.model.cuda_graph import CudaCapture
from fusionkit.model.lanes import CudaLanes, Work, run_side_by_side
from fusionkit.model.replays import Replays
from fusionkit.model.runtime import Runtime
from fusionkit.ops.tokens import Tokens


def build(**changes: Any) -> Any:
    """The vision side of the small recipe, on which nothing is at its start."""
    parts = recipe() | changes
    for name in ("injectors", "language_model", "box_tokenizer", "sequence_length"):
        parts.pop(name, None)
    torch.manual_seed(0)
    model = fusionkit.build(parts).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def pixels(crops: int, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(crops, 3, 24, 24, generator=generator) for name in ("semantic", "spatial")}


def see(model: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """All that the vision side gives: the streams' tokens and the fused ones."""
    streams = model.encode_streams(given)
    return {**{name: tokens.x_BND for name, tokens in streams.items()}, "fused": model.fuse(streams).x_BND}


def close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=4e-6)


class Recorder:
    """Stands for a capture: as with a CUDA graph, capturing computes nothing and a replay overwrites the same tensors."""

    made: list[Recorder]

    def __init__(self) -> None:
        self.captures, self.replays, self.crops = 0, 0, list[int]()
        type(self).made.append(self)

    def __call__(self, work: Callable[[], Tree], device: torch.device) -> tuple[Tree, Callable[[], object]]:
        assert not torch.is_grad_enabled()
        self.captures += 1
        held = work()
        self.crops.append(crops_of(held))
        for tensor in tensors_of(held):
            tensor.fill_(torch.nan if tensor.is_floating_point() else 0)

        def replay() -> None:
            self.replays += 1
            for old, new in zip(tensors_of(held), tensors_of(work()), strict=True):
                old.copy_(new)

        return held, replay


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    """Every model that is told to use CUDA graphs gets a recorder instead, found here."""
    Recorder.made = []
    monkeypatch.setattr(vision, "CudaCapture", Recorder)
    return Recorder.made


# -------------------------------------------------------------------------------------------------- buckets
def test_default_buckets_are_powers_of_two_and_the_most_crops() -> None:
    assert [default_buckets(most) for most in (1, 2, 3, 8, 13)] == [
        (1,),
        (1, 2),
        (1, 2, 3),
        (1, 2, 4, 8),
        (1, 2, 4, 8, 13),
    ]
    assert [bucket_for(crops, (1, 2, 4, 13)) for crops in (1, 2, 3, 4, 5, 13, 20)] == [1, 2, 4, 4, 13, 13, 13]


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"cuda_graphs": True, "crop_buckets": ()}, r"expected rising numbers of crops from 1 up, got \[\]"),
        ({"cuda_graphs": True, "crop_buckets": (0, 2)}, r"expected rising numbers of crops from 1 up, got \[0, 2\]"),
        ({"cuda_graphs": True, "crop_buckets": (2, 2)}, r"expected rising numbers of crops from 1 up, got \[2, 2\]"),
        ({"crop_buckets": (1, 2)}, "Runtime.crop_buckets is used with cuda_graphs=True only; leave it out"),
        ({"cuda_graphs": True, "check_finite": True}, "cuda_graphs and check_finite exclude each other; choose one"),
        ({"cuda_graphs": True, "parallel_encoders": True}, "cuda_graphs and parallel_encoders exclude each other"),
    ],
)
def test_choices_that_cannot_be_are_refused(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Runtime(**choices)


def test_trees_are_split_joined_and_told_apart() -> None:
    x, share = torch.randn(5, 4, 3), torch.rand(5, 4)
    tokens = Tokens(x, Grid(2, 2), coverage_BN=share)
    tree: dict[str, Any] = {"a": tokens, "b": torch.randn(5, 2)}
    parts = split(tree, 2)
    assert [crops_of(part) for part in parts] == [2, 2, 1]
    joined: Any = join(parts)
    assert torch.equal(joined["a"].x_BND, x)
    assert torch.equal(joined["a"].coverage_BN, share)
    assert torch.equal(joined["b"], tree["b"])
    assert signature(parts[0]) == signature(tree), "the count of crops is no part of it"
    others: list[dict[str, Any]] = [
        {"b": tree["b"], "a": tokens},
        tree | {"a": tokens._replace(coverage_BN=None)},
        tree | {"a": tokens._replace(coverage_BN=None, valid_BN=share)},
        tree | {"a": tokens._replace(grid=Grid(1, 4))},
        tree | {"b": tree["b"].double()},
        tree | {"b": torch.randn(5, 3)},
    ]
    assert len({signature(other) for other in [tree, *others]}) == 7
    with pytest.raises(ShapeError, match=r"expected as many crops of every stream, got \{'a': 5, 'b': 4\}"):
        crops_of({"a": tokens, "b": torch.randn(4, 2)})


# ------------------------------------------------------------------------------------------------- captures
def test_every_number_of_crops_gives_what_plain_execution_gives(recorders: list[Recorder]) -> None:
    model = build()
    with torch.no_grad():
        expected = {crops: see(model, pixels(crops)) for crops in range(1, 10)}
        model.runtime = Runtime(cuda_graphs=True, crop_buckets=(1, 2, 4))
        for crops in (3, 1, 9, 2, 4, 5, 8, 7, 6):
            close(see(model, pixels(crops)), expected[crops])
    (recorder,) = recorders
    assert recorder.captures == 6, "one for the streams and one for the fusion, in each of three buckets"
    assert sorted(recorder.crops) == [1, 1, 2, 2, 4, 4]
    assert recorder.replays == 2 * sum((1, 1, 1, 1, 2, 2, 2, 2, 3)), "crops over the largest bucket come in parts"


def test_results_are_the_callers_own(recorders: list[Recorder]) -> None:
    model = build()
    model.runtime = Runtime(cuda_graphs=True, crop_buckets=(2,))
    with torch.no_grad():
        first = see(model, pixels(2, seed=1))
        before = {name: tensor.clone() for name, tensor in first.items()}
        second = see(model, pixels(2, seed=2))
    for name, tensor in first.items():
        assert torch.equal(tensor, before[name])
        assert not torch.equal(tensor, second[name])
    assert recorders[0].captures == 2


def test_what_an_earlier_call_left_in_the_padding_reaches_nobody(recorders: list[Recorder]) -> None:
    model = build()
    model.runtime = Runtime(cuda_graphs=True, crop_buckets=(4,))
    with torch.no_grad():
        expected = see(model, pixels(1))
        assert not see(model, {name: x * torch.nan for name, x in pixels(4).items()})["fused"].isfinite().any()
        found = see(model, pixels(1))
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_coverage_is_padded_too_and_captured_apart(recorders: list[Recorder]) -> None:
    streams = recipe()["streams"]
    streams["semantic"]["steps"]["pad"] = {"type": "padding_embedding", "std": 1.0}
    model = build(streams=streams)
    share = torch.rand(3, 36).round()
    with torch.no_grad():
        expected = [model.encode_streams(pixels(3), coverage=each) for each in ({}, {"semantic": share})]
        model.runtime = Runtime(cuda_graphs=True, crop_buckets=(4,))
        for each, wanted in zip(({}, {"semantic": share}), expected, strict=True):
            found = model.encode_streams(pixels(3), coverage=each)
            close({name: x.x_BND for name, x in found.items()}, {name: x.x_BND for name, x in wanted.items()})
        assert torch.equal(found["semantic"].coverage_BN, share)
    assert recorders[0].captures == 2
    assert not torch.equal(expected[0]["semantic"].x_BND, expected[1]["semantic"].x_BND)


def _write(model: Any) -> None:
    with torch.no_grad():
        model.streams["spatial"].encoder.positions.mul_(3)


def _replace(model: Any) -> None:
    model.streams["spatial"].encoder.positions = nn.Parameter(torch.randn(16, 12))


def _load(model: Any) -> None:
    model.load_state_dict({name: tensor * 1.5 for name, tensor in model.state_dict().items()})


def _write_past_the_count(model: Any) -> None:
    mixer = model.streams["semantic"].steps["mix"]
    mixer.maps.skew.data.add_(0.5)
    mixer.unfold()


def _train_and_back(model: Any) -> None:
    model.train()
    model.eval()


@pytest.mark.parametrize(
    ("change", "alters"),
    [
        (_write, True),
        (_replace, True),
        (_load, True),
        (_write_past_the_count, True),
        (_train_and_back, False),
        (lambda model: model.double(), False),
        (lambda model: setattr(model, "runtime", model.runtime), False),
    ],
    ids=["write", "replace", "load", "unfold", "train", "cast", "runtime"],
)
def test_captures_end_with_what_they_were_made_of(
    recorders: list[Recorder], change: Callable[[Any], None], alters: bool
) -> None:
    def captures() -> int:
        return sum(recorder.captures for recorder in recorders)

    model = build()
    model.runtime = Runtime(cuda_graphs=True, crop_buckets=(2,))
    with torch.no_grad():
        before = see(model, pixels(2))
        for _ in range(3):
            see(model, pixels(2))
        assert captures() == 2
        change(model)
        found = see(model, pixels(2))
        assert captures() > 2
        see(model, pixels(2))
        settled = captures()
        see(model, pixels(2))
        assert captures() == settled, "captured again for no reason"
        twin = copy.deepcopy(model)
        twin.runtime = Runtime()
        close(found, see(twin, pixels(2)))
    assert alters == (not torch.allclose(found["fused"].float(), before["fused"], atol=1e-4))


def test_autocast_is_captured_apart(recorders: list[Recorder]) -> None:
    model = build()
    model.runtime = Runtime(cuda_graphs=True, crop_buckets=(2,))
    with torch.no_grad():
        full = see(model, pixels(2))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = see(model, pixels(2))
        again = see(model, pixels(2))
    assert recorders[0].captures == 4
    assert torch.equal(full["fused"], again["fused"])
    assert not torch.equal(full["fused"].float(), half["fused"].float())


def test_training_and_grad_are_never_captured(recorders: list[Recorder]) -> None:
    model = build()
    model.runtime = Runtime(cuda_graphs=True)
    see(model, pixels(2))["fused"].sum().backward()
    assert model.streams["semantic"].encoder.positions.grad is not None
    model.fusion.train()
    with torch.no_grad():
        model.fuse(model.encode_streams(pixels(1)))
    assert recorders[0].captures == 1, "the streams alone are in eval mode"


def test_inference_mode_and_no_grad_share_captures(recorders: list[Recorder]) -> None:
    model = build()
    model.runtime = Runtime(cuda_graphs=True, crop_buckets=(2,))
    with torch.inference_mode():
        first = see(model, pixels(2))
    with torch.no_grad():
        second = see(model, pixels(2))
    assert recorders[0].captures == 2
    assert torch.equal(first["fused"], second["fused"])
    assert not second["fused"].is_inference()


def test_weights_whose_writes_are_not_counted_are_refused(recorders: list[Recorder]) -> None:
    with torch.inference_mode():
        linear = nn.Linear(2, 2).eval()
    with pytest.raises(UsageError, match=r"made in inference mode.*outside torch.inference_mode\(\)"), torch.no_grad():
        Replays((1,), Recorder()).run("any", linear, {"x": torch.zeros(1, 2)}, lambda tree: tree)


def test_without_crops_nothing_is_captured() -> None:
    Recorder.made = []
    replays = Replays((1,), Recorder())
    none = {"x": torch.zeros(0, 2)}
    assert replays.run("any", nn.Identity().eval(), none, lambda tree: tree) is none
    assert Recorder.made[0].captures == 0


def test_copies_capture_for_themselves(recorders: list[Recorder]) -> None:
    model = build()
    model.runtime = Runtime(cuda_graphs=True, crop_buckets=(2,))
    with torch.no_grad():
        expected = see(model, pixels(2))
        twin = copy.deepcopy(model)
        assert twin.runtime == model.runtime
        close(see(twin, pixels(2)), expected)
        see(model, pixels(2))
    assert [recorder.captures for recorder in recorders] == [2, 2]


def test_memory_that_a_capture_reads_is_kept() -> None:
    """Tables and folded maps outlive what drops them, as long as a capture could read them."""
    model = build()
    with torch.no_grad():
        model.encode_streams(pixels(1))
    folded = model.streams["semantic"].steps["mix"]._folded
    Recorder.made = []
    replays = Replays((1,), Recorder())
    with torch.no_grad():
        replays.run("encode", model.streams, {"x": torch.zeros(1, 2)}, lambda tree: tree)
    (captured,) = replays._captured.values()
    held = {id(tensor) for tensor in captured.kept.tensors}
    assert {id(tensor) for tensor in (folded.gain_LD, folded.shift_LD, *folded.matrices)} <= held
    assert captured.kept.unchanged()
    model.streams["semantic"].steps["mix"].unfold()
    assert not captured.kept.unchanged()


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


# ------------------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize("choice", ["cuda_graphs", "parallel_encoders"])
def test_a_machine_without_cuda_says_so_and_changes_nothing(choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = build()
    with pytest.raises(UsageError) as refused:
        model.runtime = Runtime(**{choice: True})
    assert str(refused.value) == f"Runtime.{choice}: torch finds no CUDA device here; leave it off"
    assert model.runtime == Runtime()
    with torch.no_grad():
        model.fuse(model.encode_streams(pixels(1)))


def test_tensors_on_the_cpu_are_refused_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UsageError, match=r"Runtime.cuda_graphs: expected pixels on a CUDA device, got cpu"):
        CudaCapture()(dict, torch.device("cpu"))
    with pytest.raises(UsageError, match=r"Runtime.parallel_encoders: expected pixels on a CUDA device, got cpu"):
        CudaLanes().current(torch.device("cpu"))


def test_the_bench_has_rows_of_them_that_say_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def reasons(name: str, mode: str = "fwd") -> dict[str, str]:
        cases = cases_from_recipe(fusionkit.load_recipe(f"builtin:{name}"), 1, ["vision"])[0]
        rows = run(cases, Setting(mode), rounds=1, against=["none"], ceiling_scale=0.01)
        return {row["variant"]: row["reason"] for row in rows if row["status"] == "skip"}

    graphs = "Runtime.cuda_graphs: torch finds no CUDA device here; leave it off"
    lanes = "Runtime.parallel_encoders: torch finds no CUDA device here; leave it off"
    assert reasons("tiny") == {"fusionkit_cuda_graphs": graphs, "fusionkit_parallel_encoders": lanes}
    assert reasons("tiny_semantic") == {"fusionkit_cuda_graphs": graphs}, "one encoder has nobody beside it"


# --------------------------------------------------------------------------------------------------- on a GPU
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "runtime",
    [
        {"cuda_graphs": True, "crop_buckets": (1, 2, 4)},
        {"parallel_encoders": True},
        {"cuda_graphs": True, "layer_norm_sum": "triton"},
    ],
    ids=str,
)
def test_on_a_device_everything_is_as_plain(runtime: dict[str, Any]) -> None:
    streams = recipe()["streams"]
    streams["semantic"]["steps"]["mix"] = {"type": "orthogonal", "share": "encoder"}
    model = build(streams=streams).to("cuda")
    given = {crops: {name: x.cuda() for name, x in pixels(crops).items()} for crops in (1, 2, 3, 4, 7)}
    with torch.no_grad():
        expected = {crops: see(model, each) for crops, each in given.items()}
        model.runtime = Runtime(**runtime)
        for _ in range(2):
            for crops, each in given.items():
                close(see(model, each), expected[crops])
        _write(model)
        found = see(model, given[2])
        model.runtime = Runtime()
        close(found, see(model, given[2]))
