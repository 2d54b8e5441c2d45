"""The planned memory of a process against what one process, and one of two, really holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import fusionkit
from fusionkit.data.collate import Collate
from fusionkit.model.parts import build_object
from fusionkit.model.processing import FusionProcessor
from fusionkit.recipe.plan_memory import Load, plan_world, rank_memory
from fusionkit.train.addresses import set_trainable
from fusionkit.train.groups import assign
from fusionkit.train.objectives import build_objectives
from fusionkit.train.optimizer import make_optimizer
from fusionkit.train.stage_model import StageModel

sys.path.insert(0, str(Path(__file__).parent))
from conftest import SMALL
from kept_memory import kept_for_backward

WIDER = (
    "streams.semantic.encoder.depth=6",
    "streams.spatial.encoder.depth=8",
    "language_model.config.num_hidden_layers=6",
    "language_model.config.intermediate_size=512",
)
ALL = "train.stages.answers.trainable=[streams, fusion, language_model]"


@pytest.mark.parametrize("changes", [(), (ALL,), (*WIDER, ALL)], ids=["tiny", "everything learns", "deeper"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_one_process_holds_what_is_planned(changes: tuple[str, ...], optimizer: str) -> None:
    recipe = fusionkit.load_recipe("builtin:tiny_demo", set=(*changes, f"train.optimizer={{type: {optimizer}}}"))
    assert recipe.train is not None
    model = fusionkit.build(recipe)
    processor = FusionProcessor.from_plan(model.plan)
    data = build_object("datasets", recipe.train.data[0])
    batch = Collate(processor, 2)([data[index] for index in range(4)])
    prefix = model.plan.largest_layout.tokens
    for name, stage in recipe.train.stages.items():
        set_trainable(model, stage.trainable, "test")
        model.zero_grad()
        wrapped = StageModel(model, build_objectives(stage, name, model, processor, 0))
        load = Load(4, 8, prefix, batch["input_ids"].shape[1] - prefix)
        planned = rank_memory(model.plan, name, stage, 1, "ddp", load)
        activations, loss = kept_for_backward(wrapped, batch)
        assert planned.activations == pytest.approx(activations, rel=1 / 3), name
        loss.backward()
        heads = sum(parameter.numel() for parameter in wrapped.objectives.parameters())
        assert planned.parameters == 4 * sum(parameter.numel() for parameter in model.parameters())
        gradients = sum(4 * parameter.numel() for parameter in wrapped.parameters() if parameter.grad is not None)
        assert planned.gradients == pytest.approx(gradients - 4 * heads, rel=0.01), name
        assigned = assign(model, wrapped.objectives, recipe.train.optimizer, recipe.train.learning_rates)
        steps = make_optimizer(recipe.train.optimizer, assigned)
        steps.step()
        members = getattr(steps, "members", [steps])
        held = sum(4 * v.numel() for m in members for s in m.state.values() for v in s.values() if v.ndim)
        # Muon keeps half as much of matrices, and which weights are matrices is known only once they are built.
        assert planned.optimizer == pytest.approx(held - 8 * heads, rel=0.25 if optimizer == "muon" else 0.01), name


@pytest.mark.parametrize("layout", ["ddp", "fsdp2"])
def test_one_of_two_processes_holds_what_is_planned(layout: str) -> None:
    recipe = yaml.safe_load(SMALL)
    recipe["language_model"] |= {"config": {**recipe["language_model"]["config"], "num_hidden_layers": 4}}
    recipe["train"]["stages"]["answers"]["trainable"] = ["streams", "fusion", "language_model"]
    script = Path(__file__).with_name("measured_memory.py")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script), layout, yaml.safe_dump(recipe, sort_keys=False)],
        capture_output=True, text=True, timeout=200, check=False, env={**os.environ, "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout.splitlines()[-1])
    planned = fusionkit.plan(fusionkit.load_recipe(recipe))
    assert planned.recipe.train is not None
    stage = planned.recipe.train.stages["answers"]
    rows, length = measured["batch"]
    prefix = planned.largest_layout.tokens
    found = rank_memory(planned, "answers", stage, 2, layout, Load(2, rows, prefix, length - prefix))
    # The plan counts logits of all positions, whose gradients the backward pass makes; autograd is told of answers only.
    estimated = {"ddp": 1 / 3, "fsdp2": 0.4}[layout]
    for part, value in measured["sizes"].items():
        tolerance = estimated if part == "activations" else 0.05
        assert getattr(found, part) == pytest.approx(value, rel=tolerance), part


def test_the_papers_batch_does_not_divide_by_its_gpus(fusionkit) -> None:
    shown = fusionkit("plan", "come_vl", "--world", "64", "--memory", "64GiB")
    assert shown.code == 0, shown.err
    assert (
        "global_batch_size 24 does not divide by 64 processes; use 24 processes, or global_batch_size 64" in shown.out
    )
    assert shown.out.splitlines()[-1] == "64.0 GiB: fits with FSDP2"
    data = json.loads(fusionkit("plan", "come_vl", "--world", "24", "--memory", "64GiB", "--json").out)["world"]
    assert data["problems"] == []
    assert [(row["layout"], row["fits"]) for row in data["ranks"]] == [("ddp", False), ("fsdp2", True)]


def test_more_processes_hold_less_and_checkpointing_keeps_less() -> None:
    planned = fusionkit.plan("builtin:come_vl")
    two, many = (plan_world(planned, world).rows[1] for world in (2, 24))
    assert many.optimizer < two.optimizer / 8
    assert many.gathered == two.gathered
    less = plan_world(planned, 24, checkpointing=True).rows[1]
    assert less.activations < many.activations


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--memory", "64GiB"), "--memory and --gradient-checkpointing go with --world N"),
        (("--world", "0"), "--world 0: expected at least one process"),
        (("--world", "2", "--memory", "lots"), "--memory lots: expected a size such as 64GiB"),
    ],
)
def test_what_cannot_be_planned_is_told(fusionkit, words: tuple[str, ...], message: str) -> None:
    shown = fusionkit("plan", "tiny", *words)
    assert shown.code == 2
    assert message in shown.err
