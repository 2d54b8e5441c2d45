"""Buckets of crops, and what is captured for them: when, from what, and until when.

What captures is a stand-in here; CUDA's own is in test_cuda_graph.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from model_recipe import recipe
from torch import nn
from vision_side import build, close, pixels, see

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
from fusionkit.model.replays import Replays
from fusionkit.model.runtime import Runtime
from fusionkit.ops.tokens import Tokens


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
