"""Killed at any moment, a training resumes and ends at the weights of one that was never interrupted."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fusionkit
from fusionkit.recipe import Recipe
from fusionkit.train.partial import LOG_FILE, after, partial_of, stage_folder, states
from fusionkit.train.run import Interrupted, train

sys.path.insert(0, str(Path(__file__).parent))
from conftest import SMALL

STEPS = 3
MOMENTS = 20
PAUSE = 0.005
"""Seconds between two looks at the log of a run."""


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
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run; those that are killed find everything imported."""
    return train(recipe(), tmp_path_factory.mktemp("runs") / "straight").folder


def steps_made(output: Path) -> int:
    """How many steps the log of a run tells of, finished or not."""
    for folder in (partial_of(output), output):
        with suppress(OSError):  # it may be renamed this moment
            return (folder / LOG_FILE).read_bytes().count(b"\n")
    return 0


def step_seconds(folder: Path) -> float:
    """How long a step of a finished run took: in the faster stage, because the first one imports as well."""
    rows = [json.loads(line) for line in (folder / LOG_FILE).read_text(encoding="utf-8").splitlines()]
    ends = {row["stage"]: row["seconds"] for row in rows}
    return float(min(ends.values())) / STEPS


def killed_after(steps: int, seconds: float, output: Path, *, resume: bool = False) -> bool:
    """Train in a child that is killed so long after it has logged so many new steps; whether it was still running.

    The run's own log says when to begin to wait, so the moment falls into the run however fast the machine is.
    """
    before = steps_made(output) if resume else 0
    child = os.fork()
    if child == 0:
        code = 1
        try:
            train(recipe(), output, resume=resume)
            code = 0
        finally:
            os._exit(code)
    ended, status = 0, 0
    while not ended and steps_made(output) - before < steps:
        time.sleep(PAUSE)
        ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
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
    rows = [json.loads(line) for line in (folder / LOG_FILE).read_text(encoding="utf-8").splitlines()]
    return [(row["stage"], row["step"]) for row in rows]


def kill_and_resume(kills: int, draw: random.Random, straight: Path, tmp_path: Path) -> set[int]:
    """As many runs, each killed while it runs, resumed and compared; returns the steps they had made."""
    made: set[int] = set()
    killed, step = 0, step_seconds(straight)
    for number in range(2 * kills):
        output = tmp_path / f"run{number}"
        steps, seconds = draw.randrange(2 * STEPS + 1), draw.uniform(0, step)
        if killed_after(steps, seconds, output):
            killed += 1
            made.add(steps_made(output))
        finish(output)
        assert same(output, straight), f"killed {seconds:.3f} s after step {steps}"
        assert logged(output) == logged(straight)
        assert {path.name for path in tmp_path.iterdir()} == {f"run{n}" for n in range(number + 1)}
        if killed == kills:
            return made
    pytest.fail(f"only {killed} of {2 * kills} runs were still running when they were to be killed")


def test_killed_at_some_moments(uninterrupted: Path, tmp_path: Path) -> None:
    kill_and_resume(3, random.Random(0), uninterrupted, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_twenty_moments(uninterrupted: Path, tmp_path: Path) -> None:
    made = kill_and_resume(MOMENTS, random.Random(1), uninterrupted, tmp_path)
    assert len(made) > STEPS, "the kills did not spread over the run"


def test_killed_again_and_again(uninterrupted: Path, tmp_path: Path) -> None:
    """One run, killed in every step that it makes until it is done; tried again where it was too fast to be killed twice."""
    draw, step = random.Random(2), step_seconds(uninterrupted)
    for number in range(10):
        output, kills = tmp_path / f"run{number}", 0
        while not output.exists():  # it may be killed after its last rename
            kills += killed_after(1, draw.uniform(0, step), output, resume=partial_of(output).exists())
            assert kills < 10 * STEPS, "the run does not come forward"
        finish(output)
        assert same(output, uninterrupted)
        assert logged(output) == logged(uninterrupted)
        if kills > 1:
            return
    pytest.fail("no run could be killed twice")


@pytest.mark.parametrize("damage", ["flipped", "cut", "removed", "no hashes"])
def test_a_damaged_state_gives_way_to_the_one_before(uninterrupted: Path, tmp_path: Path, damage: str) -> None:
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
    assert same(output, uninterrupted)
    assert logged(output) == logged(uninterrupted)


def test_a_damaged_model_of_a_finished_stage_trains_the_stage_again(uninterrupted: Path, tmp_path: Path) -> None:
    output, said = tmp_path / "run", []
    with pytest.raises(Interrupted):
        train(recipe(), output, stop_after=STEPS - 1)
    with pytest.raises(Interrupted):
        train(recipe(), output, resume=True, stop_after=1)
    weights = after(partial_of(output), 0) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    train(recipe(), output, resume=True, say=said.append)
    assert said[0].endswith("not used, stage 'encoders' is trained again")
    assert same(output, uninterrupted)
    assert logged(output) == logged(uninterrupted)


def test_killed_after_the_last_rename_it_is_finished(uninterrupted: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(recipe(), output, stop_after=1)
    train(recipe(), tmp_path / "other")
    (tmp_path / "other").rename(output)
    assert train(recipe(), output, resume=True).steps == 0
    assert not partial_of(output).exists()
