"""Training `tiny_demo` through the public road: a checkpoint comes out, and interruptions change nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fusionkit
from fusionkit.errors import CheckpointError, DataError, FusionkitError, UsageError
from fusionkit.evaluate.run import evaluate
from fusionkit.model.checkpoint import load_checkpoint
from fusionkit.recipe import Recipe
from fusionkit.train.run import Finished, Interrupted, train

SHORT = (
    "train.stages.encoders.steps=4",
    "train.stages.answers.steps=6",
    "train.global_batch_size=4",
    "train.turns_per_sample=2",
    "train.log_every=1",
    "train.save_every=3",
)
STEPS = 4 + 6


def short(*changes: str) -> Recipe:
    return fusionkit.load_recipe("builtin:tiny_demo", set=SHORT + changes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(first: Path, second: Path) -> bool:
    one, two = weights(first), weights(second)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def logged(folder: Path) -> list[tuple[str, int]]:
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["stage"], row["step"]) for row in map(json.loads, lines)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "straight"
    assert train(short(), folder).steps == STEPS
    return folder


def test_a_run_leaves_a_checkpoint_with_its_recipe_lock_and_log(uninterrupted: Path) -> None:
    model, processor = load_checkpoint(uninterrupted)
    assert sum(parameter.numel() for parameter in model.parameters()) == model.plan.parameters
    assert not uninterrupted.with_name("straight.partial").exists()
    assert logged(uninterrupted) == [("encoders", step) for step in range(1, 5)] + [
        ("answers", step) for step in range(1, 7)
    ]
    assert fusionkit.load_recipe(json.loads((uninterrupted / "recipe.json").read_text())) == short()
    scores = evaluate(model, processor, model.plan.recipe, samples=2)
    assert [entry.name for entry in scores] == [entry.name for entry in short().evaluate]


def test_the_last_step_of_a_stage_is_logged_whatever_the_beat(uninterrupted: Path, tmp_path: Path) -> None:
    train(short("train.log_every=4"), tmp_path / "run")
    assert logged(tmp_path / "run") == [("encoders", 4), ("answers", 4), ("answers", 6)]
    assert same(tmp_path / "run", uninterrupted)


def test_stages_train_what_they_name_and_nothing_else(tmp_path: Path) -> None:
    train(short("train.stages.answers=null"), tmp_path / "encoders")
    train(short(), tmp_path / "both")
    first, both = weights(tmp_path / "encoders"), weights(tmp_path / "both")
    changed = {name for name in first if not torch.equal(first[name], both[name])}
    assert changed
    assert all(name.startswith(("fusion", "language_model")) for name in changed)


@pytest.mark.parametrize(("stops", "expected"), [((2,), "encoders"), ((5,), "answers"), ((1, 3), "encoders")])
def test_interrupted_and_resumed_it_ends_at_the_same_weights(
    uninterrupted: Path, tmp_path: Path, stops: tuple[int, ...], expected: str
) -> None:
    folder = tmp_path / "resumed"
    for number, stop_after in enumerate(stops):
        with pytest.raises(Interrupted, match=f"stopped in stage '{expected}' after step {stop_after}"):
            train(short(), folder, resume=number > 0, stop_after=stop_after)
    left = train(short(), folder, resume=True).steps
    assert left == STEPS - stops[-1] - (4 if expected == "answers" else 0)
    assert same(folder, uninterrupted)
    assert logged(folder) == logged(uninterrupted)


def start(folder: Path) -> subprocess.Popen[str]:
    changes = [part for change in (*SHORT, "train.stages.answers.steps=400") for part in ("--set", change)]
    return subprocess.Popen(
        [str(Path(sys.executable).with_name("fusionkit")), "train", "tiny_demo", "-o", str(folder), *changes],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )


def wait_for_step(folder: Path, stage: str, step: int, process: subprocess.Popen[str]) -> None:
    log = folder.with_name(f"{folder.name}.partial") / "log.jsonl"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and f'"stage": "{stage}", "step": {step},' in log.read_text(encoding="utf-8"):
            return
        time.sleep(0.05)
    process.kill()
    raise AssertionError(f"no step {step} of {stage}: {process.communicate()}")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_saves_and_says_how_to_resume(tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "run"
    process = start(folder)
    wait_for_step(folder, "answers", 2, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number, errors
    assert "stopped in stage 'answers' after step" in errors
    advice = next(line for line in errors.splitlines() if "fusionkit train" in line)
    assert f"-o {folder} " in advice
    assert advice.endswith("--resume")
    assert "Traceback" not in errors
    saved = sorted((tmp_path / "run.partial" / "stage-1").glob("checkpoint-*/trainer_state.json"))
    assert saved


def test_killed_without_warning_it_resumes_from_the_last_saved_step(uninterrupted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    partial = tmp_path / "run.partial"
    with pytest.raises(Interrupted):
        train(short(), folder, stop_after=5)
    # What a kill in the middle of saving leaves behind: a later state without its last file.
    broken = partial / "stage-1" / "checkpoint-6"
    broken.mkdir()
    (broken / "stage.safetensors").write_bytes(b"half")
    train(short(), folder, resume=True)
    assert same(folder, uninterrupted)


def test_another_seed_is_another_model(uninterrupted: Path, tmp_path: Path) -> None:
    train(short("train.seed=1"), tmp_path / "other")
    assert not same(tmp_path / "other", uninterrupted)


def test_gradients_of_micro_batches_add_up_to_those_of_the_batch(tmp_path: Path, uninterrupted: Path) -> None:
    changes = ("train.stages.answers=null", "train.stages.encoders.objectives.what=null")
    one = ("train.stages.encoders.steps=1",)
    train(short(*changes, *one), tmp_path / "whole")
    train(short(*changes, *one, "train.micro_batch_size=2"), tmp_path / "parts")
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    untouched = weights(uninterrupted)
    moved = [
        name for name in whole if name.startswith("streams.spatial") and not torch.equal(whole[name], untouched[name])
    ]
    assert moved
    # Losses are means over tokens on objects, of which the halves have slightly different numbers.
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=0, atol=5e-2, msg=name)


def test_what_is_there_is_not_overwritten(uninterrupted: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="straight exists; replace it with --overwrite"):
        train(short(), uninterrupted)
    with pytest.raises(UsageError, match="is finished already; there is nothing to resume"):
        train(short(), uninterrupted, resume=True)
    with pytest.raises(UsageError, match="no unfinished run to resume; start it without --resume"):
        train(short(), tmp_path / "nothing", resume=True)


def test_an_unfinished_run_is_resumed_with_its_own_settings_only(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(short(), folder, stop_after=1)
    with pytest.raises(UsageError, match=r"run\.partial exists; continue it with --resume, or replace it"):
        train(short(), folder)
    with pytest.raises(UsageError, match="started with other training settings"):
        train(short("train.learning_rates.fusion=1e-3"), folder, resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.learning_rates.fusion=null", r"\d+ trainable parameters lie in no address: fusion"),
        ("train.stages.answers.data=[{type: jsonl, path: nowhere.jsonl}]", "nowhere.jsonl"),
    ],
)
def test_what_is_wrong_with_a_later_stage_is_told_before_the_first_step(
    tmp_path: Path, change: str, message: str
) -> None:
    begun: list[str] = []
    with pytest.raises(FusionkitError, match=message):
        train(short(change), tmp_path / "run", on_stage=lambda name, _: begun.append(name))
    assert (begun, list(tmp_path.iterdir())) == ([], [])


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(CheckpointError, match=r"cannot write there"):
        train(short(), blocker / "run")


def test_a_loss_that_is_not_finite_names_the_samples(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not finite at step \d+.*the batch has synthetic_scenes"):
        train(
            short(
                "train.learning_rates={streams: 1e30, fusion: 1e30, language_model: 1e30}",
                "train.optimizer={type: adamw}",
            ),
            tmp_path / "run",
        )


@pytest.mark.slow
def test_tiny_demo_learns_to_point(tmp_path: Path) -> None:
    """About two minutes on one core. The thresholds are well below what is measured."""
    recipe = fusionkit.load_recipe("builtin:tiny_demo")
    finished: Finished = train(recipe, tmp_path / "demo")
    model, processor = load_checkpoint(finished.folder)
    true = evaluate(model, processor, recipe, samples=128)[0].values
    shuffled = evaluate(model, processor, recipe, samples=128, shuffle_pictures=True)[0].values
    assert true["box_accuracy"]["box_accuracy"] >= 0.7
    assert true["point_accuracy"]["point_accuracy"] >= 0.6
    assert shuffled["box_accuracy"]["box_accuracy"] <= 0.15
