"""Two processes on a CPU (gloo) learn what one process learns from the same global batch: DDP and FSDP2."""

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

MIXED = Path(__file__).with_name("mixed_samples.py")
CHANGES = (
    "train.precision=fp64",
    "train.global_batch_size=4",
    "train.stages.encoders.steps=3",
    "train.stages.answers.steps=4",
    "train.stages.answers.trainable=[streams, fusion, language_model]",
    "train.stages.answers.data=[{type: test.mixed}]",
    "train.save_every=2",
)
ONE = ("-m", "fusionkit")
DDP = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m", "fusionkit")  # fmt: skip
FSDP2 = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fusionkit")


def command(launcher: tuple[str, ...], recipe: Path, output: Path, *more: str, changes: tuple[str, ...] = ()) -> Any:
    words = [part for change in (*CHANGES, *changes) for part in ("--set", change)]
    return subprocess.run(
        [sys.executable, *launcher, "train", str(recipe), "-o", str(output), "--plugin", str(MIXED), *words, *more],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""},
    )


def finished(launcher: tuple[str, ...], recipe: Path, output: Path, *more: str, changes: tuple[str, ...] = ()) -> Path:
    ended = command(launcher, recipe, output, *more, changes=changes)
    assert ended.returncode == 0, ended.stderr
    return output


def curve(folder: Path) -> list[tuple[str, int, float, float]]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(row["stage"], row["step"], row["loss"], row["grad_norm"]) for row in rows]


def compare(found: Path, expected: Path, tolerance: float) -> None:
    """The same losses and gradient norms at the same steps, and weights that agree."""
    pairs = list(zip(curve(found), curve(expected), strict=True))
    assert pairs
    for (stage, step, *numbers), (other_stage, other_step, *others) in pairs:
        assert (stage, step) == (other_stage, other_step)
        assert numbers == pytest.approx(others, rel=tolerance), (stage, step)
    one, two = (load_file(folder / "model.safetensors") for folder in (expected, found))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=max(1e-6, 30 * tolerance), msg=name)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sys.path.insert(0, str(Path(__file__).parent))
    from conftest import SMALL

    path = tmp_path_factory.mktemp("recipes") / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def one(recipe: Path) -> Path:
    """The run of a single process."""
    return finished(ONE, recipe, recipe.parent / "one")


def test_two_processes_with_ddp(recipe: Path, one: Path, tmp_path: Path) -> None:
    compare(finished(DDP, recipe, tmp_path / "ddp"), one, 1e-9)


def test_two_processes_with_fsdp2_interrupted_and_resumed(recipe: Path, one: Path, tmp_path: Path) -> None:
    stopped = command(FSDP2, recipe, tmp_path / "fsdp", "--shard", "fsdp2", "--stop-after", "3")
    assert "stopped in stage 'answers' after step 3" in stopped.stderr, stopped.stderr
    compare(finished(FSDP2, recipe, tmp_path / "fsdp", "--shard", "fsdp2", "--resume"), one, 1e-9)


def test_micro_batches_add_up_to_the_batch(recipe: Path, one: Path, tmp_path: Path) -> None:
    """Rows differ in length and samples in pictures: means of means would not be the mean."""
    compare(finished(ONE, recipe, tmp_path / "parts", changes=("train.micro_batch_size=1",)), one, 1e-9)


def test_muon_under_fsdp2_is_told(recipe: Path, tmp_path: Path) -> None:
    ended = command(FSDP2, recipe, tmp_path / "muon", "--shard", "fsdp2", changes=("train.optimizer={type: muon}",))
    assert ended.returncode != 0
    assert "error: train.stages.encoders.optimizer: muon cannot run under FSDP2" in ended.stderr
    assert "errors.UsageError" not in ended.stderr  # the only traceback is torchrun's own
