"""Gates, weights and the reach of attention: equal to what the blocks compute, and warnings that come when they should."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fusionkit.analysis.gates import read_history
from fusionkit.analysis.gates_report import History, Measured, warnings
from fusionkit.analysis.reach import RINGS, distances, look, measure
from fusionkit.analysis.running import Running
from fusionkit.errors import CheckpointError
from fusionkit.geometry import Frame, Grid, Size
from fusionkit.model.checkpoint import load_checkpoint
from fusionkit.ops.learned import Gate, Weights, gates, learned_numbers, weights
from fusionkit.ops.tokens import Tokens
from fusionkit.sample import Provenance, Sample, Turn


def tokens(grid: Grid, frame: Frame) -> Tokens:
    return Tokens(torch.zeros(1, grid.tokens, 4), grid, frame, None)


def test_distances_between_grids_of_one_crop() -> None:
    found = distances(tokens(Grid(1, 2), Frame()), tokens(Grid(2, 1), Frame()))
    assert torch.allclose(found, torch.full((2, 2), 0.125**0.5, dtype=torch.float64))
    same = distances(tokens(Grid(3, 3), Frame()), tokens(Grid(3, 3), Frame()))
    assert same.diagonal().abs().max() == 0
    assert same.max() == pytest.approx(2 * 2**0.5 / 3)


def test_reach_of_even_and_of_own_place_attention() -> None:
    distance = distances(tokens(Grid(4, 4), Frame()), tokens(Grid(4, 4), Frame()))
    even = measure(torch.full((2, 3, 16, 16), 1 / 16), distance)
    assert even.heads == pytest.approx([even.even] * 3)
    assert even.profile == pytest.approx(even.even_profile)
    assert sum(even.profile) == pytest.approx(1)
    own = measure(torch.eye(16).expand(1, 2, 16, 16), distance)
    assert own.heads == [0, 0]
    assert own.profile == [1] + [0] * (RINGS - 1)
    blocked = torch.full((1, 1, 16, 16), 1 / 16)
    blocked[..., 5, :] = 0  # a query that may look nowhere
    assert measure(blocked, distance).heads[0] == pytest.approx(
        float(distance[[n for n in range(16) if n != 5]].mean()), abs=1e-6
    )


@pytest.fixture(scope="module")
def tiny() -> Any:
    return load_checkpoint("checkpoint:tiny")


def batch_of(processor: Any) -> Any:
    from PIL import Image

    image = Image.effect_noise((48, 48), 90).convert("RGB")
    sample = Sample(lambda: image, Size(48, 48), (Turn("count red", ()),), Provenance("test", 0))
    return processor.batch([sample], 1, answers=False)


def test_tiny_is_read_as_its_blocks_say(tiny: Any) -> None:
    model, processor = tiny
    (gate,) = gates(model)
    assert gate.address == "fusion.align.gate"
    assert gate.opening == pytest.approx(float(torch.tanh(model.get_parameter(gate.address)).detach()))
    found = {each.address: each.values for each in weights(model)}
    for stream in ("semantic", "spatial"):
        mixer = model.get_submodule(f"streams.{stream}.steps.mix")
        assert found[f"streams.{stream}.steps.mix"] == pytest.approx(mixer.weights().tolist())
        assert sum(found[f"streams.{stream}.steps.mix"]) == pytest.approx(1)
    assert set(learned_numbers(model)) == {gate.address, *found}

    reaches, changes = look(model, batch_of(processor))
    assert set(reaches) == {"fusion.align"}
    assert len(reaches["fusion.align"].heads) == 4
    assert all(0 <= head <= 2**0.5 for head in reaches["fusion.align"].heads)
    assert set(changes) == {"gate fusion.align.gate", "stream semantic", "stream spatial"}
    assert all(change > 0 for change in changes.values())
    assert gates_of(model) == gate.value, "the gate is as it was"


def gates_of(model: nn.Module) -> float:
    return next(gates(model)).value


def test_reach_equals_the_attention_of_the_connector(tiny: Any) -> None:
    model, processor = tiny
    batch = batch_of(processor)
    reaches, _ = look(model, batch)
    align = model.get_submodule("fusion.align")
    seen: list[Tensor] = []
    attention = align.attention

    def keep(module: nn.Module, args: Any) -> None:
        query_BND, memory_BMC, phases, _ = args
        q, k = (attention._heads(x) for x in (attention.query(query_BND), attention.key(memory_BMC)))
        q, k = attention.rotate(q, phases[0]), attention.rotate(k, phases[1])
        seen.append((q @ k.mT / attention.head_width**0.5).softmax(-1))

    handle = attention.register_forward_pre_hook(keep)
    with torch.inference_mode():
        streams = model.encode_streams({name[13:]: v for name, v in batch.items() if name.startswith("pixel_values_")})
        model.fuse(streams)
    handle.remove()
    expected = measure(seen[0], distances(streams["semantic"], streams["spatial"]))
    assert reaches["fusion.align"].heads == pytest.approx(expected.heads, abs=1e-5)
    assert reaches["fusion.align"].profile == pytest.approx(expected.profile, abs=1e-5)


def test_a_shut_gate_changes_nothing_and_is_told(tiny: Any) -> None:
    model, processor = tiny
    parameter = model.get_parameter("fusion.align.gate")
    before = parameter.detach().clone()
    with torch.no_grad():
        parameter.zero_()
    try:
        _, changes = look(model, batch_of(processor))
        assert changes["gate fusion.align.gate"] == 0
        assert changes["stream spatial"] == 0, "the memory is behind the gate"
        runs = {name: Running() for name in changes}
        for name, change in changes.items():
            runs[name].add(change)
        told = warnings(Measured("m", tuple(gates(model)), (), changes=runs))
    finally:
        with torch.no_grad():
            parameter.copy_(before)
    assert any(text.startswith("fusion.align.gate: the gate is shut (tanh γ = 0)") for text in told)
    assert any(text.startswith("spatial: without this stream the fused tokens change by 0.00% only") for text in told)


def test_warnings_come_when_one_weight_has_all_and_not_before() -> None:
    def told(*values: float) -> list[str]:
        names = tuple(f"layer {n}" for n in range(1, len(values) + 1))
        return warnings(Measured("m", (Gate("g", 0.3),), (Weights("mix", values, names),)))

    assert told(0.5, 0.5) == []
    assert told(0.94, 0.06) == []
    assert told(1.0) == [], "one layer alone has all and is no collapse"
    assert told(0.02, 0.98)[0].startswith("mix: layer 2 has 0.980 of the weight")


def test_history_is_read_from_the_rows_that_have_it(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    assert read_history(log) == History()
    rows = [
        {"stage": "a", "step": 10, "loss": 1.0},
        {"stage": "a", "step": 20, "loss": 0.5, "learned": {"g": 0.1, "mix": [0.4, 0.6]}},
    ]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_history(log)
    assert (found.steps, found.stages) == ((20,), ("a",))
    log.write_text("not a row\n")
    with pytest.raises(CheckpointError, match=r"log\.jsonl:1: not a row of a training log"):
        read_history(log)
