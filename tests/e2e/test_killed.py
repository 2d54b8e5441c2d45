"""Killed at any moment, a training resumes and ends at the weights of one that was never interrupted."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fusionkit
from fusionkit.recipe import Recipe
from fusionkit.train.partial import after, partial_of, stage_folder, states
from fusionkit.train.run import Interrupted, train

sys.path.insert(0, str(Path(__file__).parent))
from conftest import SMALL

STEPS = 3
MOMENTS = 20


def recipe() -> Recipe:
    """Saves after every step, so that most of the time there is something to be torn."""
    import yaml

    changes = (
        f"train.stages.encoders.steps={STEPS}",
        f"train.stages.answers.steps={STEPS}",
        "train.save_every=1",
        "train.optimizer={type: muon}",
    )
    return fusionkit.load_recipe(yaml.safe_load(SMALL), set=changes)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A whole run, and how long it took after everything was imported."""
    folder = tmp_path_factory.mktemp("runs")
    train(recipe(), folder / "warm")
    started = time.monotonic()
    train(recipe(), folder / "straight")
    return folder / "straight", time.monotonic() - started


def killed_after(seconds: float, output: Path, *, resume: bool = False) -> bool:
    """Train in a child that is killed after a while; whether it was still running."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            train(recipe(), output, resume=resume)
            code = 0
        finally:
            os._exit(code)
    time.sleep(seconds)
    ended, status = os.waitpid(child, os.WNOHANG)
    if ended:
        assert os.waitstatus_to_exitcode(status) == 0
        return False
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def finish(output: Path) -> None:
    if not output.exists() or partial_of(output).exists():
        train(recipe(), output, resume=partial_of(output).exists())


def same(first: Path, second: Path) -> bool:
    one, two = (load_file(folder / "model.safetensors") for folder in (first, second))
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def logged(folder: Path) -> list[tuple[str, int]]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(row["stage"], row["step"]) for row in rows]


def kill_and_resume(moments: list[float], uninterrupted: tuple[Path, float], tmp_path: Path) -> None:
    straight, seconds = uninterrupted
    for number, moment in enumerate(moments):
        output = tmp_path / f"run{number}"
        killed_after(moment * seconds, output)
        finish(output)
        assert same(output, straight), f"killed after {moment:.3f} of the run"
        assert logged(output) == logged(straight)
        assert {path.name for path in tmp_path.iterdir()} == {f"run{n}" for n in range(number + 1)}


def test_killed_at_some_moments(uninterrupted: tuple[Path, float], tmp_path: Path) -> None:
    draw = random.Random(0)
    kill_and_resume([draw.uniform(0.05, 1.0) for _ in range(3)], uninterrupted, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_twenty_moments(uninterrupted: tuple[Path, float], tmp_path: Path) -> None:
    draw = random.Random(1)
    kill_and_resume([draw.uniform(0.0, 1.1) for _ in range(MOMENTS)], uninterrupted, tmp_path)


def test_killed_again_and_again(uninterrupted: tuple[Path, float], tmp_path: Path) -> None:
    """One run, killed until it is done."""
    straight, seconds = uninterrupted
    output = tmp_path / "run"
    for attempt in range(12):
        if not killed_after(seconds * (0.4 + 0.1 * attempt), output, resume=partial_of(output).exists()):
            break
    finish(output)
    assert same(output, straight)


# -------------------------------------------------------------------------------------------------- damaged states
@pytest.mark.parametrize("damage", ["flipped", "cut", "removed", "no hashes"])
def test_a_damaged_state_gives_way_to_the_one_before(
    uninterrupted: tuple[Path, float], tmp_path: Path, damage: str
) -> None:
    output, said = tmp_path / "run", []
    with pytest.raises(Interrupted):
        train(recipe(), output, stop_after=2)
    folder = stage_folder(partial_of(output), 0)
    (newest, path), (_, before) = states(folder)
    assert (newest, before.name) == (2, "checkpoint-1")
    file = path / ("hashes.json" if damage == "no hashes" else "optimizer.pt")
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[:-1])
    else:
        file.unlink()
    train(recipe(), output, resume=True, say=said.append)
    assert said[0].startswith(f"{path}: ")
    assert said[0].endswith("; not used")
    assert said[1] == "stage 'encoders' goes on after step 1"
    assert same(output, uninterrupted[0])
    assert logged(output) == logged(uninterrupted[0])


def test_a_damaged_model_of_a_finished_stage_trains_the_stage_again(
    uninterrupted: tuple[Path, float], tmp_path: Path
) -> None:
    output, said = tmp_path / "run", []
    with pytest.raises(Interrupted):
        train(recipe(), output, stop_after=STEPS - 1)
    with pytest.raises(Interrupted):
        train(recipe(), output, resume=True, stop_after=1)
    weights = after(partial_of(output), 0) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    train(recipe(), output, resume=True, say=said.append)
    assert said[0].endswith("not used, stage 'encoders' is trained again")
    assert same(output, uninterrupted[0])
    assert logged(output) == logged(uninterrupted[0])


def test_killed_after_the_last_rename_it_is_finished(uninterrupted: tuple[Path, float], tmp_path: Path) -> None:
    output = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(recipe(), output, stop_after=1)
    train(recipe(), tmp_path / "other")
    (tmp_path / "other").rename(output)
    assert train(recipe(), output, resume=True).steps == 0
    assert not partial_of(output).exists()
