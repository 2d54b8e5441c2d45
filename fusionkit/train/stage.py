"""One stage of a training: its data, what learns and how fast, and the Trainer that does it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from transformers import PrinterCallback, ProgressCallback, TrainingArguments

from fusionkit.data.careful import Careful, skipped
from fusionkit.data.collate import Collate
from fusionkit.data.mixture import Mixture, dataset_length
from fusionkit.data.packing import Packing
from fusionkit.errors import UsageError
from fusionkit.model.lora import freeze_base
from fusionkit.model.modeling import FusionVLM
from fusionkit.model.new_rows import train_only_rows
from fusionkit.model.packable import require_packable
from fusionkit.model.parts import build_object
from fusionkit.model.processing import FusionProcessor
from fusionkit.plugin import DatasetConfig
from fusionkit.recipe import Stage, Train
from fusionkit.train import sharding, world
from fusionkit.train.addresses import lies_in, set_trainable
from fusionkit.train.execution import Execution
from fusionkit.train.features import keep_features
from fusionkit.train.groups import AuditRow, assign, audit
from fusionkit.train.objectives import build_objectives
from fusionkit.train.optimizer import make_optimizer
from fusionkit.train.partial import LOG_FILE, SKIPPED_FILE, cut_log, newest_state, stage_folder
from fusionkit.train.progress import JsonLog, Progress, StopAfter, StopOnSignal
from fusionkit.train.stage_model import StageModel
from fusionkit.train.trainer import StageTrainer


@dataclass(frozen=True, slots=True)
class Run:
    """What all stages of a run share. `say(text)` tells the person something; `on_stage(name, audit)` before a stage."""

    partial: Path
    settings: Train
    execution: Execution
    resume: bool
    stop: StopOnSignal
    stop_after: int | None
    say: Callable[[str], None]
    on_stage: Callable[[str, list[AuditRow]], None] | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How far a stage got: `made` steps by this process, `reached` of `steps` in all; the weights, whole."""

    made: int
    reached: int
    steps: int
    weights: dict[str, torch.Tensor]


def check_stage(run: Run, model: FusionVLM, processor: FusionProcessor, number: int, name: str, stage: Stage) -> None:
    """Find out before the first step of a run what would end this stage at its start.

    That is: data, addresses, batch, rates, and rows that cannot be packed.
    """
    settings, where = run.settings, f"train.stages.{name}"
    batch_size = stage.global_batch_size or settings.global_batch_size
    optimizer = stage.optimizer or settings.optimizer
    world.share(batch_size, settings.micro_batch_size)
    _mixture(stage.data or settings.data, stage.steps, batch_size, settings.seed + number)
    if run.execution.shard == "fsdp2" and world.size() > 1:
        sharding.check_optimizer(optimizer, where)
    set_trainable(model, stage.trainable, f"{where}.trainable")
    if settings.lora is not None:
        freeze_base(model)
    wrapped = StageModel(model, build_objectives(stage, name, model, processor, settings.seed))
    _packing(settings, wrapped, processor)
    new_ids = _rows_that_learn(wrapped, model, processor, stage, low_rank=settings.lora is not None)
    rates = settings.learning_rates if stage.learning_rates is None else stage.learning_rates
    assign(model, wrapped.objectives, optimizer, rates, new_rows=bool(new_ids))


def run_stage(run: Run, model: FusionVLM, processor: FusionProcessor, number: int, name: str, stage: Stage) -> Outcome:
    """Train one stage from its newest good state, or from the start."""
    settings, where = run.settings, f"train.stages.{name}"
    batch_size = stage.global_batch_size or settings.global_batch_size
    micro, accumulation = world.share(batch_size, settings.micro_batch_size)
    dataset = _mixture(stage.data or settings.data, stage.steps, batch_size, settings.seed + number)
    steps = len(dataset) // batch_size
    listed = run.partial / SKIPPED_FILE
    samples = Careful(dataset, listed) if settings.bad_samples == "skip" else dataset
    folder = stage_folder(run.partial, number)
    arguments = _arguments(run, folder, micro, accumulation, steps)
    optimizer = stage.optimizer or settings.optimizer
    sharded = run.execution.shard == "fsdp2" and world.size() > 1

    set_trainable(model, stage.trainable, f"{where}.trainable")
    if settings.lora is not None:
        freeze_base(model)
    objectives = build_objectives(stage, name, model, processor, settings.seed + 1000 * (number + 1))
    # fp64 is for comparing runs to the last digits: computed in one order, however the batch is divided.
    uniform = sharded or settings.precision == "fp64"
    wrapped = StageModel(model, objectives, uniform=uniform).to(arguments.device)
    if settings.precision == "fp64":
        wrapped.double()  # the objectives' heads; the model is already
    packing = _packing(settings, wrapped, processor)
    checkpoint_activations(model, run.execution)
    new_ids = _rows_that_learn(wrapped, model, processor, stage, low_rank=settings.lora is not None)
    with ExitStack() as handles:
        for handle in train_only_rows(model.language_model, new_ids) if new_ids else ():  # type: ignore[arg-type]
            handles.callback(handle.remove)
        new_rows: dict[str, Sequence[int]] = {}
        if sharded:
            # Sharding replaces the parameters, and hooks on them go: their rows are kept at the clipping instead.
            tables = [parameter for parameter, _ in _tables(model)] if new_ids else []
            new_rows = {
                key: new_ids for key, each in wrapped.named_parameters() if any(each is table for table in tables)
            }
            sharding.shard(wrapped, optimizer, where)
        elif world.size() > 1:
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(wrapped, sharding.skew_names(wrapped))
        if run.execution.features is not None:
            handles.enter_context(keep_features(model, run.execution.features, sharded, run.say))
        rates = settings.learning_rates if stage.learning_rates is None else stage.learning_rates
        assigned = assign(model, wrapped.objectives, optimizer, rates, new_rows=bool(new_ids))
        if run.on_stage is not None and world.is_main():
            run.on_stage(name, audit(model, assigned))
        trainer = StageTrainer(
            model=wrapped,
            dataset=samples,
            collate=Collate(
                processor,
                stage.turns_per_sample or settings.turns_per_sample,
                double=settings.precision == "fp64",
                packing=packing,
            ),
            make_optimizer=lambda: make_optimizer(optimizer, assigned),
            schedule=stage.schedule or settings.schedule,
            new_rows=new_rows,
            args=arguments,
            callbacks=[
                Progress(name),
                JsonLog(run.partial / LOG_FILE, name),
                run.stop,
                *([StopAfter(run.stop_after)] if run.stop_after else []),
            ],
        )
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)  # the first would write loss dictionaries to stdout
        begun, state = _resume_from(run, folder, name)
        model.train()
        trainer.train(resume_from_checkpoint=state)
    model.train(False)
    if world.is_main() and (reasons := skipped(listed)):
        counted = "1 sample" if len(reasons) == 1 else f"{len(reasons)} samples"
        run.say(
            f"{counted} could not be used and {'was' if len(reasons) == 1 else 'were'} left out, listed in {SKIPPED_FILE}: {reasons[0]}"
        )
    if packing is not None:
        share = trainer.filled()
        if world.is_main():
            run.say(f"stage '{name}': packed rows were {share:.1%} tokens, the rest padding")
    reached = trainer.state.global_step
    weights = sharding.whole_weights(model) if sharded else {}
    return Outcome(reached - begun, reached, steps, weights)


def _resume_from(run: Run, folder: Path, name: str) -> tuple[int, str | None]:
    """The step to go on after and the saved state of it; the log is cut back to there."""
    if not run.resume:
        return 0, None
    found, damaged = newest_state(folder)
    step = 0 if found is None else found[0]
    if world.is_main():
        for wrong in damaged:
            run.say(f"{wrong}; not used")
        if damaged:
            run.say(
                f"stage '{name}' goes on after step {step}" if step else f"stage '{name}' is trained from its start"
            )
        cut_log(run.partial / LOG_FILE, list(run.settings.stages), name, step)
    world.wait()
    return step, None if found is None else str(found[1])


def _tables(model: FusionVLM) -> list[tuple[torch.nn.Parameter, str]]:
    decoder: Any = model.language_model
    found = [(decoder.get_input_embeddings(), "input"), (decoder.get_output_embeddings(), "output")]
    return [(table.weight, name) for table, name in found if table is not None]


def _rows_that_learn(
    wrapped: StageModel, model: FusionVLM, processor: FusionProcessor, stage: Stage, *, low_rank: bool
) -> Sequence[int]:
    """Ids of the new tokens, when the language model's own weights are frozen and these embedding rows learn all the same."""
    learns_text = not low_rank and any(
        "language_model".startswith(address) or lies_in(address, "language_model") for address in stage.trainable
    )
    if not wrapped.needs_text or learns_text or not model.config.new_tokens:
        return ()
    ids: list[int] = processor.tokenizer.convert_tokens_to_ids(model.config.new_tokens)
    return ids


def checkpoint_activations(model: FusionVLM, execution: Execution) -> None:
    """Let the decoder compute its activations again in the backward pass, if that is how the stage is executed."""
    if execution.gradient_checkpointing and model.language_model is not None:
        decoder: Any = model.language_model
        # Transformers is about to drop its first name for it.
        enable = getattr(decoder, "activation_checkpointing_enable", None) or decoder.gradient_checkpointing_enable
        enable({"use_reentrant": False})


def _packing(settings: Train, wrapped: StageModel, processor: FusionProcessor) -> Packing | None:
    """How the rows of a stage are packed, if they are. Raises UsageError for a model that mixes packed samples.

    Tried with the weights of the start and with those that a stage begins with: a gate may be closed at first.
    """
    if not settings.packing or not wrapped.needs_text:
        return None
    packing = Packing.of(processor)
    require_packable(wrapped.model, packing.limit)
    return packing


def _mixture(configs: Sequence[Any], steps: int | None, batch_size: int, seed: int) -> Mixture:
    datasets = [build_object("datasets", config) for config in configs]
    weights = [config.weight if isinstance(config, DatasetConfig) else 1.0 for config in configs]
    sizes = [dataset_length(dataset) for dataset in datasets]
    if steps is None:
        if None in sizes:
            raise UsageError("train.stages: give `steps`, because a dataset of this stage does not end")
        # The last step is filled up with the beginning of the next pass: every step has the whole batch.
        steps = -(-sum(size for size in sizes if size is not None) // batch_size)
    return Mixture(datasets, weights, steps * batch_size, seed)


def _arguments(run: Run, folder: Path, micro: int, accumulation: int, steps: int) -> TrainingArguments:
    settings, on_cpu = run.settings, not torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        max_grad_norm=settings.max_grad_norm,
        logging_steps=settings.log_every,
        save_steps=settings.save_every,
        seed=settings.seed,
        bf16=settings.precision == "bf16",
        use_cpu=on_cpu,
        dataloader_num_workers=settings.workers,
        dataloader_pin_memory=not on_cpu,
        ddp_find_unused_parameters=True,  # a batch may have no pictures, and a layer no gradient
        ddp_broadcast_buffers=False,
        remove_unused_columns=False,
        report_to=list(run.execution.report_to),
        disable_tqdm=True,
    )
