"""`fusionkit evaluate`: held-out scores of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fusionkit.cli.options import JsonOption, PluginOption, SetOption, load_plugins, open_recipe
from fusionkit.cli.output import emit_json, note, table
from fusionkit.cli.writing import make_folder
from fusionkit.errors import UsageError


def command(
    checkpoint: Annotated[
        str | None,
        typer.Argument(metavar="[CHECKPOINT]", help="A checkpoint folder, or `checkpoint:tiny`.", show_default=False),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="Take `evaluate` from this recipe instead of the checkpoint's own.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="PATH_OR_ID", help="Score a transformers image-text model instead; needs --recipe."
        ),
    ] = None,
    boxes: Annotated[
        str | None,
        typer.Option("--boxes", metavar="NAME", help="With --model: the box tokenizer that reads its answers."),
    ] = None,
    prompt: Annotated[str, typer.Option("--prompt", help="With --model: how a question is asked.")] = "{question}",
    drop: Annotated[
        list[str] | None,
        typer.Option("--drop", metavar="STREAM", help="Score once more without what this stream saw. May be repeated."),
    ] = None,
    samples: Annotated[
        int | None, typer.Option("-n", "--samples", min=1, help="At most this many pictures per entry.")
    ] = None,
    shuffle_pictures: Annotated[
        bool, typer.Option("--shuffle-pictures", help="Negative control: ask each question about another picture.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Folder for scores (JSON, CSV, Markdown, LaTeX), answers.jsonl, report.html."
        ),
    ] = None,
    set: SetOption = None,
    plugin: PluginOption = None,
    json: JsonOption = False,
) -> None:
    """Score a checkpoint, or any transformers image-text model, on the data a recipe names.

    \b
    Examples:
      fusionkit evaluate checkpoint:tiny -n 64
      fusionkit evaluate runs/tiny -o runs/tiny/scores
      fusionkit evaluate runs/tiny --drop spatial          which encoder helps where
      fusionkit evaluate runs/tiny --shuffle-pictures      what the questions alone give away
      fusionkit evaluate --model Qwen/Qwen2.5-VL-3B-Instruct --recipe come_vl --prompt "Locate {question}, in JSON."
    """
    if (checkpoint is None) == (model is None):
        raise UsageError("give either a CHECKPOINT or --model PATH_OR_ID (see `fusionkit evaluate --help`)")
    if model is not None and recipe is None:
        raise UsageError("--model needs --recipe RECIPE: whose `evaluate` section says what is asked")
    if model is not None and drop:
        raise UsageError("--drop needs a fusionkit checkpoint: other models have no streams to drop")
    if model is None and (boxes is not None or prompt != "{question}"):
        raise UsageError("--boxes and --prompt go with --model; a checkpoint has its own box tokenizer and wording")
    if output is not None:
        make_folder(output)  # before the work, not after it
    load_plugins(plugin)
    from fusionkit.evaluate.report import as_rows, write_report
    from fusionkit.evaluate.run import evaluate, score
    from fusionkit.evaluate.tables import cell, columns_of

    def show(name: str, done: int, total: int) -> None:
        if done == total or done % 128 == 0:
            note(f"{name}: {done}/{total} pictures")

    asked = None if recipe is None else open_recipe(recipe, set)
    if model is not None and asked is not None:
        from fusionkit.evaluate.other_models import OtherModel

        results = score(
            OtherModel(model, boxes=boxes, prompt=prompt),
            asked,
            samples=samples,
            shuffle_pictures=shuffle_pictures,
            on_progress=show,
        )
    else:
        from fusionkit.model.checkpoint import load_checkpoint
        from fusionkit.recipe import load_recipe
        from fusionkit.recipe.lock import unlock

        loaded, processor = load_checkpoint(str(checkpoint))
        asked = asked or load_recipe(unlock(loaded.config.lock), set=tuple(set or ()))
        results = evaluate(
            loaded,
            processor,
            asked,
            samples=samples,
            shuffle_pictures=shuffle_pictures,
            drop=drop or (),
            on_progress=show,
        )
    rows = as_rows(results)
    if json:
        emit_json(rows)
    else:
        columns = columns_of(rows)
        table(columns, [[cell(row.get(column)) for column in columns] for row in rows])
    if output is not None:
        scored = model or checkpoint
        facts = {"checkpoint": scored, "recipe": asked.name, "shuffled pictures": shuffle_pictures}
        note(f"report: {write_report(output, f'Scores of {scored}', results, facts)}")
