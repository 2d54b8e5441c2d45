"""The folder of an unfinished run: what is in it, which of it can be trusted, and what a kill may have left behind.

`OUTPUT.partial/` holds the lock, the log, `after-N/` with the model after each finished stage and `stage-N/` with the
Trainer's saved states of the current one. All but the log are sealed.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from fusionkit.errors import CheckpointError, LockMismatchError, UsageError
from fusionkit.model.checkpoint import LOCK_FILE, failure
from fusionkit.recipe import Recipe
from fusionkit.recipe.lock import check_lock, lock
from fusionkit.train.sealed import fault

LOG_FILE = "log.jsonl"
SKIPPED_FILE = "skipped.jsonl"
SAVING = ".saving"
"""Where a state or a model is written before it appears under its name."""
KEPT_STATES = 2
"""Saved states of a stage that are kept: the newest, and one to fall back to."""


def partial_of(output: Path) -> Path:
    """Where the unfinished run for `output` is kept."""
    return output.with_name(f"{output.name}.partial")


def start(recipe: Recipe, output: Path, *, overwrite: bool) -> Path:
    """Make the folder of a new run. Raises UsageError when something is there already, CheckpointError when it cannot be made."""
    partial = partial_of(output)
    if not overwrite:
        for path in (output, partial):
            if path.exists():
                hint = "continue it with --resume, or " if path == partial else ""
                raise UsageError(f"{path} exists; {hint}replace it with --overwrite, or choose another -o")
    staging = partial.with_name(f".{partial.name}.tmp")
    try:
        _remove_leftovers(output)
        shutil.rmtree(partial, ignore_errors=True)
        staging.mkdir(parents=True)
        (staging / LOCK_FILE).write_text(json.dumps(lock(recipe)) + "\n", encoding="utf-8")
        staging.rename(partial)  # never without its lock
    except OSError as error:
        raise CheckpointError(f"{partial}: cannot write there: {failure(error, partial)}") from error
    return partial


def reopen(recipe: Recipe, output: Path) -> Path:
    """The folder of the run to continue. Raises UsageError when there is none, LockMismatchError for another recipe."""
    partial = partial_of(output)
    if not (partial / LOCK_FILE).exists():
        raise UsageError(f"{partial}: no unfinished run to resume; start it without --resume")
    made_by = json.loads((partial / LOCK_FILE).read_text(encoding="utf-8"))
    try:
        check_lock(made_by, recipe)
    except LockMismatchError as error:
        last = error.problems[-1]
        advice = f"{partial} was started with another recipe: resume it with that one, or choose another -o"
        hint = f"{last.hint}; {advice}" if last.hint else advice
        raise LockMismatchError([*error.problems[:-1], replace(last, hint=hint)]) from error
    now = lock(recipe)
    if made_by["run"]["recipe"] != now["run"]["recipe"]:
        raise UsageError(f"{partial}: this run was started with other training settings; resume it with the same ones")
    changed = sorted(
        name
        for name in made_by["run"]["data"].keys() | now["run"]["data"].keys()
        if made_by["run"]["data"].get(name) != now["run"]["data"].get(name)
    )
    if changed:
        raise UsageError(
            f"{partial}: the data of this run has changed since it was started: {', '.join(changed)} "
            "(put the files back, or start anew with --overwrite)"
        )
    _remove_leftovers(output)
    return partial


def _remove_leftovers(output: Path) -> None:
    """Half-written folders of a killed process."""
    mine = re.compile(rf"\.{re.escape(output.name)}\.([0-9]+|partial)\.tmp")
    for path in output.parent.glob(".*.tmp"):
        if mine.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
    for path in partial_of(output).glob(f"**/{SAVING}"):
        shutil.rmtree(path, ignore_errors=True)


def after(partial: Path, number: int) -> Path:
    """Where the model after stage `number` is kept."""
    return partial / f"after-{number}"


def stage_folder(partial: Path, number: int) -> Path:
    """Where the states of stage `number` are kept."""
    return partial / f"stage-{number}"


def states(folder: Path) -> list[tuple[int, Path]]:
    """The saved states of a stage by step, newest first."""
    found = [(int(path.name.rpartition("-")[2]), path) for path in folder.glob("checkpoint-*")]
    return sorted(found, reverse=True)


def newest_state(folder: Path) -> tuple[tuple[int, Path] | None, list[str]]:
    """The newest state of a stage that is what was written, and what is wrong with the newer ones."""
    damaged: list[str] = []
    for step, path in states(folder):
        wrong = fault(path)
        if wrong is None:
            return (step, path), damaged
        damaged.append(f"{path}: {wrong}")
    return None, damaged


def drop_old_states(folder: Path) -> None:
    for _, path in states(folder)[KEPT_STATES:]:
        shutil.rmtree(path, ignore_errors=True)


def has_progress(output: Path) -> bool:
    """Whether the unfinished run for `output` holds anything that resuming would use."""
    partial = partial_of(output)
    return any(partial.glob("after-*")) or any(partial.glob("stage-*/checkpoint-*"))


def cut_log(path: Path, stages: Sequence[str], stage: str, step: int) -> None:
    """Remove the rows of steps that will be made again: those of `stage` after `step`, and of later stages."""
    if not path.exists():
        return
    kept = list(_rows_until(path, stages, stage, step))
    staging = path.with_name(f".{path.name}.tmp")
    staging.write_text("".join(kept), encoding="utf-8")
    staging.rename(path)


def _rows_until(path: Path, stages: Sequence[str], stage: str, step: int) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            row = json.loads(line)
            place = stages.index(row["stage"]), row["step"]
        except (ValueError, KeyError):
            continue  # a line that a kill cut short
        if place <= (stages.index(stage), step):
            yield line
