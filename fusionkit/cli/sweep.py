"""`fusionkit sweep`: variants of a recipe, several seeds, one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fusionkit.cli.opening import recipe_source
from fusionkit.cli.options import JsonOption, PluginOption, SetOption, load_plugins
from fusionkit.cli.output import emit, emit_json, note, table
from fusionkit.errors import UsageError


def command(
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="[RECIPE]", help="The recipe; that of the sweep if not given.", show_default=False),
    ] = None,
    grid: Annotated[
        str | None, typer.Option("--grid", metavar="SWEEP.yaml", help="The sweep file, or a shipped sweep by name.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FOLDER", help="Where runs, results and tables go.")
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="Seeds 0 to N-1 instead of the sweep's.")] = None,
    pictures: Annotated[
        int | None, typer.Option("-n", "--pictures", min=1, help="At most so many for every score.")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show the variants and their budgets; train nothing.")] = False,
    reuse: Annotated[
        list[Path] | None,
        typer.Option(
            "--reuse",
            metavar="FOLDER",
            help="Output of another sweep: runs of the very same recipe and seed are taken from there. May be repeated.",
        ),
    ] = None,
    set: SetOption = None,
    plugin: PluginOption = None,
    json: JsonOption = False,
) -> None:
    """Train and score variants of a recipe with several seeds, at a matched budget. Interrupted, run it again: it goes on.

    \b
    Examples:
      fusionkit sweep --grid figure6 --plan
      fusionkit sweep --grid figure6 -o runs/figure6
      fusionkit sweep --grid table5 -o runs/table5 --reuse runs/figure6
      fusionkit sweep mine.yaml --grid mine_sweep.yaml -o runs/mine --seeds 5
    """
    from fusionkit.sweep.budget import plan_variants
    from fusionkit.sweep.grid import load_grid, shipped

    if grid is None:
        raise UsageError(f"give --grid SWEEP.yaml, or a shipped sweep: {', '.join(shipped())}")
    load_plugins(plugin)
    wanted = load_grid(grid)
    changed = {"seeds": tuple(range(seeds))} if seeds is not None else {}
    wanted = wanted.model_copy(update=changed | ({"pictures": pictures} if pictures is not None else {}))
    source = recipe_source(recipe or wanted.recipe)
    variants = plan_variants(wanted, source, tuple(set or ()))
    if plan:
        rows = [
            {
                "variant": v.name,
                "parameters": v.parameters,
                "visual tokens": v.visual_tokens,
                "what": v.summary or v.exempt,
            }
            for v in variants
        ]
        note(f"{len(variants)} variants x {len(wanted.seeds)} seeds = {len(variants) * len(wanted.seeds)} runs")
        _print(rows, json)
        return
    if output is None:
        raise UsageError("give -o FOLDER for runs and results, or --plan to see the variants")
    from fusionkit.sweep.run import run_sweep
    from fusionkit.train.run import Interrupted

    try:
        rows, differences = run_sweep(wanted, source, variants, output, note, reuse or ())
    except Interrupted as stopped:
        note(f"{stopped}; what is done is kept in {output}: the same command goes on")
        raise typer.Exit(0 if stopped.signal is None else 128 + stopped.signal) from None
    if json:
        emit_json({"table": rows, "differences": differences})
        return
    _print(rows, json)
    emit()
    _print(differences, json)
    note(f"{output}: results.json; table and differences as .csv, .md and .tex")


def _print(rows: list[dict[str, Any]], json: bool) -> None:
    if json:
        emit_json(rows)
        return
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table(columns, [["" if row.get(column) is None else row[column] for column in columns] for row in rows])
