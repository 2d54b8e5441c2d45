"""`train`: a recipe becomes a checkpoint, stage by stage, and an interruption loses at most the steps since the last save.

While it runs, everything is kept in `OUTPUT.partial/` (see `partial`). When the last stage is done the checkpoint appears
at `OUTPUT` in one rename and the partial folder goes. Under `torchrun` or `accelerate launch` the processes train
together; one of them writes, into a folder that all can read.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from safetensors.torch import load_model, save_file, save_model
from torch import nn
from transformers import set_seed

from fusionkit.architectures import asking_libraries
from fusionkit.errors import CheckpointError, UsageError
from fusionkit.model.build import build
from fusionkit.model.checkpoint import SAVE_ERRORS, failure, save_checkpoint
from fusionkit.model.lora import add_lora, merge_lora
from fusionkit.model.modeling import FusionVLM
from fusionkit.model.processing import FusionProcessor
from fusionkit.recipe import Recipe
from fusionkit.recipe.plan import Plan
from fusionkit.recipe.plan import plan as plan_recipe
from fusionkit.train import partial as kept
from fusionkit.train import sharding, trackers, world
from fusionkit.train.execution import Execution
from fusionkit.train.groups import AuditRow
from fusionkit.train.partial import LOG_FILE, SAVING, SKIPPED_FILE, has_progress, partial_of
from fusionkit.train.progress import StopOnSignal
from fusionkit.train.sealed import fault, seal
from fusionkit.train.stage import Outcome, Run, check_stage, run_stage

__all__ = ["Finished", "Interrupted", "has_progress", "train"]

RECIPE_FILE = "recipe.json"
MODEL_FILE = "model.safetensors"


class Interrupted(Exception):  # noqa: N818  (an event, not a fault)
    """Training was stopped by a signal or `stop_after`; the state is saved. `signal` is its number, or None."""

    def __init__(self, stage: str, step: int, signal: int | None) -> None:
        super().__init__(f"stopped in stage '{stage}' after step {step}")
        self.signal = signal


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished training: where the checkpoint is, optimizer steps and seconds of this process."""

    folder: Path
    steps: int
    seconds: float


def train(
    recipe: Recipe,
    output: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    stop_after: int | None = None,
    execution: Execution | None = None,
    on_stage: Callable[[str, list[AuditRow]], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Finished:
    """Train a recipe and write its checkpoint to `output`.

    `on_stage(name, audit)` is called before each stage; `say(text)` is given what the person should know, such as a
    damaged state that is not used. `stop_after` interrupts the current stage after so many of its steps.

    Raises Interrupted when stopped early; UsageError when the recipe has no `train`, or there is something at `output`
    and neither `resume` nor `overwrite` is set; DataError for a sample that cannot be used; CheckpointError when the
    state cannot be written.
    """
    settings = recipe.train
    if settings is None:
        raise UsageError(f"recipe '{recipe.name}' has no `train` section; see `fusionkit show tiny`")
    output, started = Path(output), time.monotonic()
    with asking_libraries():
        planned = plan_recipe(recipe)  # before anything of an earlier run is replaced
    execution = execution or Execution()
    trackers.check_trackers(execution.report_to)
    world.join()
    if say is not None and world.size() > 1 and world.is_main():
        say(f"{world.size()} processes train together ({'FSDP2' if execution.shard == 'fsdp2' else 'DDP'})")
    if resume and output.exists():
        return _tidy_finished(output, started)
    partial = _open(recipe, output, resume=resume, overwrite=overwrite)
    with StopOnSignal() as stop:
        run = Run(partial, settings, execution, resume, stop, stop_after, say or (lambda _: None), on_stage)
        try:
            done = _train_stages(run, planned, output)
        except Exception:
            if world.is_main() and not has_progress(output):
                shutil.rmtree(partial, ignore_errors=True)  # or the same command would only say that it is there
            raise
    if world.is_main():
        shutil.rmtree(partial, ignore_errors=True)
    world.wait()
    return Finished(output, done, time.monotonic() - started)


def _tidy_finished(output: Path, started: float) -> Finished:
    """A run that was killed between its last rename and the removal of its partial folder is finished."""
    partial = partial_of(output)
    if not partial.exists():
        raise UsageError(f"{output} is finished already; there is nothing to resume")
    world.wait()
    if world.is_main():
        shutil.rmtree(partial, ignore_errors=True)
    return Finished(output, 0, time.monotonic() - started)


def _open(recipe: Recipe, output: Path, *, resume: bool, overwrite: bool) -> Path:
    """The folder of the unfinished run, made or checked by one process."""
    if world.is_main():
        if resume:
            kept.reopen(recipe, output)
        else:
            kept.start(recipe, output, overwrite=overwrite)
    world.wait()
    return partial_of(output)


def _train_stages(run: Run, planned: Plan, output: Path) -> int:
    """Every stage that is not done yet, then the checkpoint; returns the optimizer steps of this process."""
    set_seed(run.settings.seed)
    model = _fresh(run, planned)
    processor = FusionProcessor.from_plan(model.plan)
    done, stages = 0, list(run.settings.stages.items())
    first = _finished(run, len(stages))
    for number in range(first, len(stages)):
        check_stage(run, model, processor, number, *stages[number])
    for number in range(first, len(stages)):
        name, stage = stages[number]
        if number > 0:
            model = _reload(run, planned, model, number - 1)
        with trackers.writing_to(run.partial, name):
            outcome = run_stage(run, model, processor, number, name, stage)
        done += outcome.made
        if outcome.reached < outcome.steps:
            raise Interrupted(name, outcome.reached, run.stop.received)
        _keep_stage(run, model, outcome, number)
    if world.is_main():
        model = _reload(run, planned, model, len(stages) - 1)
        extra: dict[str, str | Path] = {RECIPE_FILE: json.dumps(planned.recipe.canonical(), indent=2) + "\n"}
        for name in (LOG_FILE, SKIPPED_FILE):
            if (run.partial / name).exists():
                extra[name] = (run.partial / name).read_text(encoding="utf-8")
        if (run.partial / trackers.FOLDER).exists():
            extra[trackers.FOLDER] = run.partial / trackers.FOLDER
        if run.settings.lora is not None:
            merge_lora(model)
        if run.settings.precision == "fp64":
            cast(nn.Module, model).float()
        save_checkpoint(output, model, processor, extra)
    world.wait()
    return done


def _finished(run: Run, stages: int) -> int:
    """How many stages are done: up to the last one whose model is what was written."""
    done = 0
    for number in range(stages):
        folder = kept.after(run.partial, number)
        wrong = fault(folder) if folder.exists() else None
        if folder.exists() and wrong is None:
            done = number + 1
        elif wrong is not None and world.is_main():
            run.say(f"{folder}: {wrong}; not used, stage '{list(run.settings.stages)[number]}' is trained again")
    world.wait()
    for number in range(done + 1, stages):
        if world.is_main():  # states of stages that build on one to be trained again
            shutil.rmtree(kept.stage_folder(run.partial, number), ignore_errors=True)
    world.wait()
    return done


def _fresh(run: Run, planned: Plan) -> FusionVLM:
    model = build(planned)
    if run.settings.lora is not None:
        add_lora(model, **run.settings.lora.model_dump())
    return cast(FusionVLM, cast(nn.Module, model).double()) if run.settings.precision == "fp64" else model


def _reload(run: Run, planned: Plan, model: FusionVLM, number: int) -> FusionVLM:
    """The whole model after stage `number`, as it was saved; a new one in place of one that was divided."""
    if sharding.has_parts(model):
        model = _fresh(run, planned)
    load_model(model, str(kept.after(run.partial, number) / MODEL_FILE))
    return model


def _keep_stage(run: Run, model: FusionVLM, outcome: Outcome, number: int) -> None:
    """Save the model after a stage, whole or not at all; its states are not needed any more."""
    target, staging = kept.after(run.partial, number), run.partial / SAVING
    if world.is_main():
        try:
            trackers.keep_files(kept.stage_folder(run.partial, number), run.partial, list(run.settings.stages)[number])
            staging.mkdir()
            if outcome.weights:
                save_file(outcome.weights, str(staging / MODEL_FILE))
            else:
                save_model(model, str(staging / MODEL_FILE))
            seal(staging, target)
        except SAVE_ERRORS as error:
            why = failure(error, run.partial)
            shutil.rmtree(staging, ignore_errors=True)
            raise CheckpointError(f"{target}: cannot save the model after this stage: {why}") from error
        shutil.rmtree(kept.stage_folder(run.partial, number), ignore_errors=True)
    world.wait()
