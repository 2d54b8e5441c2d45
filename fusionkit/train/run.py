"""`train`: a recipe becomes a checkpoint, stage by stage, and an interruption loses at most the current step.

While it runs, everything is kept in `OUTPUT.partial/`: the lock, the log, the model after each finished stage and the
Trainer's state of the current one. When the last stage is done the checkpoint appears at `OUTPUT` in one rename and the
partial folder goes.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from transformers import TrainingArguments, set_seed

from fusionkit.data.collate import Collate
from fusionkit.data.mixture import Mixture, dataset_length
from fusionkit.errors import CheckpointError, UsageError
from fusionkit.model.build import build
from fusionkit.model.checkpoint import LOCK_FILE, SAVE_ERRORS, failure, save_checkpoint
from fusionkit.model.modeling import FusionVLM
from fusionkit.model.new_rows import train_only_rows
from fusionkit.model.parts import build_object
from fusionkit.model.processing import FusionProcessor
from fusionkit.plugin import DatasetConfig
from fusionkit.recipe import Recipe, Stage, Train
from fusionkit.recipe.lock import check_lock, lock
from fusionkit.recipe.plan import Plan
from fusionkit.recipe.plan import plan as plan_recipe
from fusionkit.train.addresses import lies_in, set_trainable
from fusionkit.train.groups import AuditRow, assign, audit
from fusionkit.train.objectives import build_objectives
from fusionkit.train.optimizer import make_optimizer
from fusionkit.train.progress import JsonLog, Progress, StopAfter, StopOnSignal
from fusionkit.train.stage_model import StageModel
from fusionkit.train.trainer import StageTrainer

LOG_FILE = "log.jsonl"
RECIPE_FILE = "recipe.json"


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
    on_stage: Callable[[str, list[AuditRow]], None] | None = None,
) -> Finished:
    """Train a recipe and write its checkpoint to `output`.

    `on_stage(name, audit)` is called before each stage. `stop_after` interrupts the current stage after so many of its
    steps. Raises Interrupted when stopped early; UsageError when the recipe has no `train`, or there is something at
    `output` and neither `resume` nor `overwrite` is set; DataError for a sample that cannot be used.
    """
    settings = recipe.train
    if settings is None:
        raise UsageError(f"recipe '{recipe.name}' has no `train` section; see `fusionkit show tiny`")
    output = Path(output)
    planned = plan_recipe(recipe)  # before anything of an earlier run is replaced
    partial = _open_partial(recipe, output, resume=resume, overwrite=overwrite)
    started = time.monotonic()
    try:
        done = _train_stages(planned, settings, output, partial, resume, stop_after, on_stage)
    except Exception:
        if not has_progress(output):
            shutil.rmtree(partial, ignore_errors=True)  # or the same command would only say that it is there
        raise
    shutil.rmtree(partial, ignore_errors=True)
    return Finished(output, done, time.monotonic() - started)


def _train_stages(
    planned: Plan,
    settings: Train,
    output: Path,
    partial: Path,
    resume: bool,
    stop_after: int | None,
    on_stage: Callable[[str, list[AuditRow]], None] | None,
) -> int:
    """Every stage that is not done yet, then the checkpoint; returns the optimizer steps of this process."""
    set_seed(settings.seed)
    model = build(planned)
    processor = FusionProcessor.from_plan(model.plan)
    done = 0
    for number, (name, stage) in enumerate(settings.stages.items()):
        finished = partial / f"after-{number}.safetensors"
        if finished.exists():
            load_model(model, str(finished))
            continue
        done += _run_stage(
            model,
            processor,
            settings,
            number,
            name,
            stage,
            partial,
            resume=resume,
            stop_after=stop_after,
            on_stage=on_stage,
        )
        _keep_stage(model, finished)
        shutil.rmtree(partial / f"stage-{number}", ignore_errors=True)
    extra = {RECIPE_FILE: json.dumps(planned.recipe.canonical(), indent=2) + "\n"}
    if (partial / LOG_FILE).exists():
        extra[LOG_FILE] = (partial / LOG_FILE).read_text(encoding="utf-8")
    model.requires_grad_(True)
    save_checkpoint(output, model, processor, extra)
    return done


def _open_partial(recipe: Recipe, output: Path, *, resume: bool, overwrite: bool) -> Path:
    """The folder of the unfinished run, made or checked."""
    partial = output.with_name(f"{output.name}.partial")
    if resume:
        if output.exists():
            raise UsageError(f"{output} is finished already; there is nothing to resume")
        if not (partial / LOCK_FILE).exists():
            raise UsageError(f"{partial}: no unfinished run to resume; start it without --resume")
        made_by = json.loads((partial / LOCK_FILE).read_text(encoding="utf-8"))
        check_lock(made_by, recipe)
        if made_by["run"]["recipe"] != lock(recipe)["run"]["recipe"]:
            raise UsageError(
                f"{partial}: this run was started with other training settings; resume it with the same ones"
            )
        return partial
    if not overwrite:
        for path in (output, partial):
            if path.exists():
                hint = "continue it with --resume, or " if path == partial else ""
                raise UsageError(f"{path} exists; {hint}replace it with --overwrite, or choose another -o")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        (partial / LOCK_FILE).write_text(json.dumps(lock(recipe)) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{partial}: cannot write there: {error.strerror or error}") from error
    return partial


def _keep_stage(model: FusionVLM, path: Path) -> None:
    """Save the model after a stage, whole or not at all."""
    staging = path.with_suffix(".tmp")
    try:
        save_model(model, str(staging))
        staging.rename(path)
    except SAVE_ERRORS as error:
        why = failure(error, path.parent)
        staging.unlink(missing_ok=True)
        raise CheckpointError(f"{path}: cannot save the model after this stage: {why}") from error


def has_progress(output: Path) -> bool:
    """Whether the unfinished run for `output` holds anything that resuming would use."""
    partial = output.with_name(f"{output.name}.partial")
    return any(partial.glob("after-*.safetensors")) or any(partial.glob("stage-*/checkpoint-*/trainer_state.json"))


def _run_stage(
    model: FusionVLM,
    processor: FusionProcessor,
    settings: Train,
    number: int,
    name: str,
    stage: Stage,
    partial: Path,
    *,
    resume: bool,
    stop_after: int | None,
    on_stage: Callable[[str, list[AuditRow]], None] | None,
) -> int:
    """Train one stage; returns the optimizer steps this process made."""
    where = f"train.stages.{name}"
    batch_size = stage.global_batch_size or settings.global_batch_size
    dataset = _mixture(stage.data or settings.data, stage.steps, batch_size, settings.seed + number)
    steps = stage.steps or -(-len(dataset) // batch_size)
    set_trainable(model, stage.trainable, f"{where}.trainable")
    learns_text = any(
        "language_model".startswith(address) or lies_in(address, "language_model") for address in stage.trainable
    )
    wrapped = StageModel(model, build_objectives(stage, name, model, processor, settings.seed + 1000 * (number + 1)))
    handles = []
    if wrapped.needs_text and not learns_text and model.config.new_tokens:
        new_ids = processor.tokenizer.convert_tokens_to_ids(model.config.new_tokens)
        handles = train_only_rows(model.language_model, new_ids)  # type: ignore[arg-type]
    optimizer = stage.optimizer or settings.optimizer
    rates = settings.learning_rates if stage.learning_rates is None else stage.learning_rates
    assigned = assign(model, wrapped.objectives, optimizer, rates, new_rows=bool(handles))
    if on_stage is not None:
        on_stage(name, audit(model, assigned))
    folder = partial / f"stage-{number}"
    with StopOnSignal() as stop:
        trainer = StageTrainer(
            model=wrapped,
            dataset=dataset,
            collate=Collate(processor, stage.turns_per_sample or settings.turns_per_sample),
            make_optimizer=lambda: make_optimizer(optimizer, assigned),
            schedule=stage.schedule or settings.schedule,
            args=_arguments(settings, folder, batch_size, steps),
            callbacks=[
                Progress(name),
                JsonLog(partial / LOG_FILE, name),
                stop,
                *([StopAfter(stop_after)] if stop_after else []),
            ],
        )
        _remove_callbacks(trainer)
        latest = _latest(folder) if resume else None
        begun = 0 if latest is None else int(latest.name.rsplit("-", 1)[1])
        model.train()
        trainer.train(resume_from_checkpoint=None if latest is None else str(latest))
    model.train(False)
    for handle in handles:
        handle.remove()
    reached = trainer.state.global_step
    if reached < steps:
        raise Interrupted(name, reached, stop.received)
    return reached - begun


def _mixture(configs: Sequence[Any], steps: int | None, batch_size: int, seed: int) -> Mixture:
    datasets = [build_object("datasets", config) for config in configs]
    weights = [config.weight if isinstance(config, DatasetConfig) else 1.0 for config in configs]
    sizes = [dataset_length(dataset) for dataset in datasets]
    if steps is not None:
        length = steps * batch_size
    elif None in sizes:
        raise UsageError("train.stages: give `steps`, because a dataset of this stage does not end")
    else:
        length = sum(size for size in sizes if size is not None)
    return Mixture(datasets, weights, length, seed)


def _arguments(settings: Train, folder: Path, batch_size: int, steps: int) -> TrainingArguments:
    world = int(torch.distributed.get_world_size()) if torch.distributed.is_initialized() else 1
    if batch_size % world:
        raise UsageError(f"train.global_batch_size {batch_size} does not divide by {world} processes")
    micro = settings.micro_batch_size or batch_size // world
    if batch_size % (micro * world):
        raise UsageError(
            f"train.global_batch_size {batch_size} is not a multiple of micro_batch_size {micro} x {world} processes"
        )
    on_cpu = not torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=batch_size // (micro * world),
        max_grad_norm=settings.max_grad_norm,
        logging_steps=settings.log_every,
        save_steps=settings.save_every,
        save_total_limit=2,
        seed=settings.seed,
        bf16=settings.precision == "bf16" and not on_cpu,
        use_cpu=on_cpu,
        dataloader_num_workers=settings.workers,
        dataloader_pin_memory=not on_cpu,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
    )


def _remove_callbacks(trainer: StageTrainer) -> None:
    """The Trainer's own printer would write loss dictionaries to stdout."""
    from transformers import PrinterCallback, ProgressCallback

    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)


def _latest(folder: Path) -> Path | None:
    """The newest complete saved state of a stage."""
    found = [path for path in folder.glob("checkpoint-*") if (path / "trainer_state.json").exists()]
    return max(found, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)
