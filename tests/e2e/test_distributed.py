"""Two processes on a CPU (gloo) learn what one process learns from the same global batch: DDP and FSDP2.

The whole loss curve is compared, 50 steps in two stages, in float64 and in float32.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import fusionkit
from fusionkit.train.run import train

sys.path.insert(0, str(Path(__file__).parent))
from conftest import SMALL
from mixed_samples import MIXED

PLUGIN = Path(__file__).with_name("mixed_samples.py")
STEPS = {"encoders": 20, "answers": 30}
CHANGES = (
    "train.precision=fp64",
    "train.global_batch_size=4",
    *(f"train.stages.{name}.steps={steps}" for name, steps in STEPS.items()),
    "train.stages.answers.trainable=[streams, fusion, language_model]",
    "train.stages.answers.data=[{type: test.mixed}]",
    "train.save_every=20",
)
SINGLE = ("train.precision=fp32",)
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fusionkit")
# `--multi_gpu` is accelerate's word for several processes; with `--cpu` it starts one, whatever --num_processes says.
ACCELERATE = ("-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")  # fmt: skip
ACCELERATE_DDP = (*ACCELERATE, "--multi_gpu", "-m", "fusionkit")
ACCELERATE_FSDP2 = (*ACCELERATE, "--use_fsdp", "--fsdp_version", "2", "-m", "fusionkit")


def command(launcher: tuple[str, ...], recipe: Path, output: Path, *more: str, changes: tuple[str, ...] = ()) -> Any:
    words = [part for change in (*CHANGES, *changes) for part in ("--set", change)]
    return subprocess.run(
        [sys.executable, *launcher, "train", str(recipe), "-o", str(output), "--plugin", str(PLUGIN), *words, *more],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""},
    )


def finished(launcher: tuple[str, ...], recipe: Path, output: Path, *more: str, changes: tuple[str, ...] = ()) -> Path:
    """A run to its end, by two processes that said so."""
    ended = command(launcher, recipe, output, *more, changes=changes)
    assert ended.returncode == 0, ended.stderr
    assert "2 processes train together" in ended.stderr
    return output


def curve(folder: Path) -> list[tuple[str, int, float, float]]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(row["stage"], row["step"], row["loss"], row["grad_norm"]) for row in rows]


def compare(found: Path, expected: Path, tolerance: float) -> None:
    """The same losses and gradient norms at the same steps, and weights that agree."""
    pairs = list(zip(curve(found), curve(expected), strict=True))
    assert [(stage, step) for (stage, step, *_), _ in pairs] == [
        (stage, step) for stage, steps in STEPS.items() for step in range(1, steps + 1)
    ]
    for (stage, step, *numbers), (other_stage, other_step, *others) in pairs:
        assert (stage, step) == (other_stage, other_step)
        assert numbers == pytest.approx(others, rel=tolerance), (stage, step)
    one, two = (load_file(folder / "model.safetensors") for folder in (expected, found))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=max(1e-6, 30 * tolerance), msg=name)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")
    return path


def alone(recipe: Path, output: Path, *changes: str) -> Path:
    """The run of a single process, this one."""
    with fusionkit.override(MIXED):
        return train(fusionkit.load_recipe(recipe, set=(*CHANGES, *changes)), output).folder


@pytest.fixture(scope="module")
def one(recipe: Path) -> Path:
    return alone(recipe, recipe.parent / "one")


@pytest.fixture(scope="module")
def one_single(recipe: Path) -> Path:
    return alone(recipe, recipe.parent / "one_single", *SINGLE)


def test_two_processes_with_ddp(recipe: Path, one: Path, tmp_path: Path) -> None:
    compare(finished(ACCELERATE_DDP, recipe, tmp_path / "ddp"), one, 1e-9)


def test_two_processes_with_ddp_in_single_precision(recipe: Path, one_single: Path, tmp_path: Path) -> None:
    compare(finished(TORCHRUN, recipe, tmp_path / "ddp", changes=SINGLE), one_single, 1e-3)


def test_two_processes_with_fsdp2_interrupted_and_resumed(recipe: Path, one: Path, tmp_path: Path) -> None:
    stopped = command(TORCHRUN, recipe, tmp_path / "fsdp", "--shard", "fsdp2", "--stop-after", "25")
    assert "stopped in stage 'answers' after step 25" in stopped.stderr, stopped.stderr
    compare(finished(TORCHRUN, recipe, tmp_path / "fsdp", "--shard", "fsdp2", "--resume"), one, 1e-9)


def test_two_processes_with_fsdp2_in_single_precision(recipe: Path, one_single: Path, tmp_path: Path) -> None:
    compare(finished(ACCELERATE_FSDP2, recipe, tmp_path / "fsdp", changes=SINGLE), one_single, 1e-3)


def test_micro_batches_add_up_to_the_batch(recipe: Path, one: Path, tmp_path: Path) -> None:
    """Rows differ in length and samples in pictures: means of means would not be the mean."""
    compare(alone(recipe, tmp_path / "parts", "train.micro_batch_size=1"), one, 1e-9)


def test_muon_under_fsdp2_is_told(recipe: Path, tmp_path: Path) -> None:
    ended = command(TORCHRUN, recipe, tmp_path / "muon", "--shard", "fsdp2", changes=("train.optimizer={type: muon}",))
    assert ended.returncode != 0
    assert "error: train.stages.encoders.optimizer: muon cannot run under FSDP2" in ended.stderr
    assert "errors.UsageError" not in ended.stderr  # the only traceback is torchrun's own
