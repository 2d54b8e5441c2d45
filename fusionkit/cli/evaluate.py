"""`fusionkit evaluate`: held-out scores of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fusionkit.cli.options import JsonOption, PluginOption, SetOption, load_plugins, open_recipe
from fusionkit.cli.output import emit_json, note, table
from fusionkit.cli.writing import make_folder


def command(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A checkpoint folder, or `checkpoint:tiny`.")],
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="Take `evaluate` from this recipe instead of the checkpoint's own.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option("-n", "--samples", min=1, help="At most this many pictures per entry.")
    ] = None,
    shuffle_pictures: Annotated[
        bool, typer.Option("--shuffle-pictures", help="Negative control: ask each question about another picture.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for scores.json, answers.jsonl, report.html.")
    ] = None,
    set: SetOption = None,
    plugin: PluginOption = None,
    json: JsonOption = False,
) -> None:
    """Score a checkpoint on the data its recipe names.

    \b
    Examples:
      fusionkit evaluate checkpoint:tiny -n 64
      fusionkit evaluate runs/tiny -o runs/tiny/scores
      fusionkit evaluate runs/tiny --shuffle-pictures      what the questions alone give away
    """
    if output is not None:
        make_folder(output)  # before the work, not after it
    load_plugins(plugin)
    from fusionkit.evaluate.report import as_rows, cell, write_report
    from fusionkit.evaluate.run import evaluate
    from fusionkit.model.checkpoint import load_checkpoint
    from fusionkit.recipe import load_recipe
    from fusionkit.recipe.lock import unlock

    model, processor = load_checkpoint(checkpoint)
    asked = (
        open_recipe(recipe, set) if recipe is not None else load_recipe(unlock(model.config.lock), set=tuple(set or ()))
    )

    def show(name: str, done: int, total: int) -> None:
        if done == total or done % 128 == 0:
            note(f"{name}: {done}/{total} pictures")

    results = evaluate(model, processor, asked, samples=samples, shuffle_pictures=shuffle_pictures, on_progress=show)
    rows = as_rows(results)
    if json:
        emit_json(rows)
    else:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        table(columns, [[cell(row.get(column)) for column in columns] for row in rows])
    if output is not None:
        facts = {"checkpoint": checkpoint, "recipe": asked.name, "shuffled pictures": shuffle_pictures}
        note(f"report: {write_report(output, f'Scores of {checkpoint}', results, facts)}")
