"""`python -m fusionkit train tiny` killed with SIGKILL at random moments, resumed as it says, ends at the same weights."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fusionkit

STEPS = 6
CHANGES = (
    *(f"train.stages.{name}.steps={STEPS}" for name in fusionkit.load_recipe("builtin:tiny").train.stages),  # type: ignore[union-attr]
    "train.global_batch_size=2",
    "train.turns_per_sample=2",
    "train.log_every=1",
    "train.save_every=1",
)


def start(output: Path, *more: str) -> subprocess.Popen[str]:
    words = [word for change in CHANGES for word in ("--set", change)]
    return subprocess.Popen(
        [sys.executable, "-m", "fusionkit", "train", "tiny", "-o", str(output), *words, *more],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )


def begun(process: subprocess.Popen[str]) -> str:
    """What the command says until its first stage begins."""
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if line.startswith("stage "):
            break
    return said


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run that nobody interrupts, and the seconds it trains and saves."""
    folder = tmp_path_factory.mktemp("runs") / "straight"
    process = start(folder)
    said = begun(process)
    started = time.monotonic()
    said += process.communicate()[1]
    assert process.returncode == 0, said
    return folder, time.monotonic() - started


def kill_until(kills: int, seed: int, straight: tuple[Path, float], tmp_path: Path) -> list[str]:
    """Kill runs until there were so many kills, resuming each until it is done; returns what was on disk at each kill."""
    expected, seconds = weights(straight[0]), straight[1]
    draw = random.Random(seed)
    found: list[str] = []
    number = 0
    while len(found) < kills:
        number += 1
        output = tmp_path / f"run{number}"
        partial = output.with_name(f"{output.name}.partial")
        done = False
        while not done:
            process = start(output, *(["--resume"] if partial.exists() else []))
            said = begun(process)
            if len(found) < kills:
                time.sleep(draw.uniform(0.0, seconds))
                process.kill()
            said += process.communicate()[1]
            if process.returncode == -9 and not output.exists():
                found.append(" ".join(sorted(path.name for path in (*partial.glob("*"), *partial.glob("stage-*/*")))))
                continue
            assert process.returncode in (0, -9), said
            done = True
        if partial.exists():  # killed between its last rename and the removal of what it no longer needs
            process = start(output, "--resume")
            said = process.communicate()[1]
            assert process.returncode == 0, said
        result = weights(output)
        assert result.keys() == expected.keys()
        assert all(torch.equal(result[name], expected[name]) for name in expected), found
        assert (output / "log.jsonl").read_text().count("\n") == (straight[0] / "log.jsonl").read_text().count("\n")
        assert {path.name for path in tmp_path.iterdir()} == {f"run{each + 1}" for each in range(number)}
    return found


@pytest.mark.timeout(600)
def test_the_command_killed_at_some_moments(straight: tuple[Path, float], tmp_path: Path) -> None:
    assert len(kill_until(2, 0, straight, tmp_path)) == 2


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_command_killed_at_twenty_moments(straight: tuple[Path, float], tmp_path: Path) -> None:
    found = kill_until(20, 1, straight, tmp_path)
    assert len(found) == 20
    assert len(set(found)) > 5, "all kills met the same state of the disk"
