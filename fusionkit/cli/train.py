"""`fusionkit train`: a recipe becomes a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from shlex import join, quote
from typing import TYPE_CHECKING, Annotated

import typer

from fusionkit.cli.options import (
    JsonOption,
    PluginOption,
    RecipeArg,
    SetOption,
    load_plugins,
    open_recipe,
)
from fusionkit.cli.output import emit, emit_json, note
from fusionkit.errors import CheckpointError, DataError

if TYPE_CHECKING:
    from fusionkit.train.execution import Execution
    from fusionkit.train.groups import AuditRow


class Sharding(StrEnum):
    """What `--shard` takes."""

    NONE = "none"
    FSDP2 = "fsdp2"


def command(
    recipe: RecipeArg,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Where the checkpoint goes; OUTPUT.partial until it is done.")
    ],
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="FILE.jsonl", help="Train on your own data instead of the recipe's."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is at OUTPUT.")] = False,
    stop_after: Annotated[
        int | None, typer.Option("--stop-after", min=1, help="Save and stop after this many steps of a stage.")
    ] = None,
    shard: Annotated[
        Sharding,
        typer.Option(
            "--shard", help="With several processes: `none` keeps the model whole in each (DDP), `fsdp2` divides it."
        ),
    ] = Sharding.NONE,
    gradient_checkpointing: Annotated[
        bool,
        typer.Option(
            "--gradient-checkpointing", help="Compute the decoder's activations twice instead of keeping them."
        ),
    ] = False,
    features: Annotated[
        Path | None,
        typer.Option(
            "--features", metavar="FOLDER", help="Keep the layers of frozen encoders there, for this and other runs."
        ),
    ] = None,
    report_to: Annotated[
        list[str] | None,
        typer.Option(
            "--report-to",
            metavar="TRACKER",
            help="Also log to a tracker that transformers knows: tensorboard (in OUTPUT/trackers), wandb, ...",
        ),
    ] = None,
    set: SetOption = None,
    plugin: PluginOption = None,
    json: JsonOption = False,
) -> None:
    """Train a recipe. Ctrl-C and SIGTERM save; --resume continues to the same weights.

    \b
    Examples:
      fusionkit train tiny -o runs/tiny
      fusionkit train tiny -o runs/tiny --resume
      fusionkit train tiny --data mine.jsonl -o runs/mine
      fusionkit train tiny -o runs/seed1 --set train.seed=1
      torchrun --nproc-per-node 2 -m fusionkit train tiny -o runs/two
      accelerate launch --multi_gpu --num_processes 2 -m fusionkit train tiny -o runs/two
      accelerate launch --use_fsdp --fsdp_version 2 -m fusionkit train mine.yaml -o runs/mine
    """
    load_plugins(plugin)
    from fusionkit.recipe import load_recipe

    opened = open_recipe(recipe, set)
    if data is not None:
        from fusionkit.train.own_data import on_own_data

        opened = load_recipe(on_own_data(opened, data))
    from fusionkit.train import world
    from fusionkit.train.execution import Execution, check_precision, sharding_asked, take_over_sharding
    from fusionkit.train.run import Interrupted, has_progress, train

    asked = sharding_asked()
    if opened.train is not None:
        check_precision(opened.train.precision)
    take_over_sharding()
    execution = Execution(
        shard="fsdp2" if "fsdp2" in (asked, shard.value) else "none",
        gradient_checkpointing=gradient_checkpointing,
        report_to=tuple(report_to or ()),
        features=features,
    )
    again = _again(recipe, output, data, execution, set, plugin)
    try:
        finished = train(
            opened,
            output,
            resume=resume,
            overwrite=overwrite,
            stop_after=stop_after,
            execution=execution,
            on_stage=_show_audit,
            say=note,
        )
    except Interrupted as stopped:
        if world.is_main():
            note(f"{stopped}; everything is saved in {output}.partial")
            note(f"continue: {again}")
        raise typer.Exit(0 if stopped.signal is None else 128 + stopped.signal) from None
    except (CheckpointError, DataError) as error:
        if not has_progress(output):
            raise
        raise type(error)(f"{error}; what was saved before is kept, continue with: {again}") from error
    if not world.is_main():
        return
    if json:
        emit_json({"checkpoint": finished.folder, "steps": finished.steps, "seconds": round(finished.seconds, 1)})
    else:
        emit(f"{finished.folder}: {finished.steps} steps in {finished.seconds:.0f} s")
        note(f"score it: fusionkit evaluate {quote(str(output))}")
        note(f'ask it:   fusionkit ask {quote(str(output))} photo.jpg "point to the red circle" -o out.png')


def _again(
    recipe: str,
    output: Path,
    data: Path | None,
    execution: Execution,
    set: Sequence[str] | None,
    plugin: Sequence[Path] | None,
) -> str:
    """The command that continues this run as it was executed, ready to paste."""
    words = ["fusionkit", "train", recipe, "-o", str(output)]
    words += ["--data", str(data)] if data is not None else []
    words += [word for change in set or () for word in ("--set", change)]
    words += [word for path in plugin or () for word in ("--plugin", str(path))]
    words += ["--shard", execution.shard] if execution.shard != "none" else []
    words += ["--gradient-checkpointing"] if execution.gradient_checkpointing else []
    words += ["--features", str(execution.features)] if execution.features is not None else []
    words += [word for name in execution.report_to for word in ("--report-to", name)]
    return join([*words, "--resume"])


def _show_audit(stage: str, rows: list[AuditRow]) -> None:
    """The parameter audit, on stderr: what learns, how fast, what is frozen."""
    note(f"stage {stage}")
    width = max(len(row.address) for row in rows)
    for row in rows:
        rule = f"{row.rule} at {row.learning_rate:g}, decay {row.weight_decay:g}" if row.trainable else "frozen"
        note(f"  {row.address:<{width}}  {row.parameters:>9,}  {rule}")
