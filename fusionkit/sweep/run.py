"""Run a sweep: train and score every variant with every seed, once; what is done is kept and not repeated."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fusionkit.errors import CheckpointError, UsageError
from fusionkit.evaluate.run import evaluate, label
from fusionkit.evaluate.tables import write_tables
from fusionkit.model.checkpoint import load_checkpoint
from fusionkit.recipe import Recipe
from fusionkit.sweep.budget import Planned
from fusionkit.sweep.grid import Grid, pairs
from fusionkit.sweep.student import estimate
from fusionkit.train.partial import partial_of
from fusionkit.train.run import train

Row = dict[str, Any]

RESULTS = "results.json"


def run_sweep(
    grid: Grid,
    source: str,
    variants: Sequence[Planned],
    output: Path,
    say: Callable[[str], None],
    reuse: Sequence[Path] = (),
) -> tuple[list[Row], list[Row]]:
    """Everything that is not done yet, seed by seed; then the table of variants and that of their differences.

    `output` gets a folder per run, `results.json` and the tables as CSV, Markdown and LaTeX. Interrupted, it goes on
    where it was. A run that another sweep (`reuse`: their outputs) made with the very same recipe, seed and scoring is
    taken from there and says so. Raises UsageError when a kept run was made with other settings, when a kept run is damaged,
    or when a folder of `reuse` holds no runs.
    """
    others = _others(reuse)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{output}: cannot make this folder: {error.strerror or error}") from error
    total, runs = len(variants) * len(grid.seeds), []
    for number, (variant, seed) in enumerate(((v, s) for s in grid.seeds for v in variants), start=1):
        name = f"{variant.name}-{seed}"
        say(f"run {number} of {total}: {name}")
        runs.append(_run(grid, variant, seed, variant.recipe(source, seed), output / name, others))
    rows, differences = as_rows(grid, variants, runs), contrasts(grid, runs)
    facts = {
        "sweep": grid.name,
        "summary": grid.summary,
        "recipe": source,
        "seeds": list(grid.seeds),
        "date": time.strftime("%Y-%m-%d"),
        "device": _device(),
        "torch": torch.__version__,
        "interval": "95 %, Student's t over seeds; differences paired by seed",
    }
    stored = {
        **facts,
        "table": rows,
        "differences": differences,
        "variants": [asdict(variant) for variant in variants],
        "runs": runs,
    }
    (output / RESULTS).write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")
    write_tables(output, "table", rows)
    write_tables(output, "differences", differences)
    return rows, differences


def _others(folders: Sequence[Path]) -> dict[str, Row]:
    """The runs of other sweeps, by their settings."""
    found: dict[str, Row] = {}
    for folder in folders:
        paths = [path for path in sorted(folder.glob("*.json")) if path.name != RESULTS]
        runs = {path: run for path in paths if (run := _kept_run(path)) is not None}
        if not runs:
            raise UsageError(f"{folder}: no runs of a sweep here; expected what `fusionkit sweep -o` wrote")
        for path, run in runs.items():
            found.setdefault(_key(run.pop("settings")), {"taken_from": f"{folder.name}/{path.stem}", **run})
    return found


def _kept_run(path: Path) -> Row | None:
    """A finished run as `_keep` wrote it; None for JSON of another kind. Raises UsageError when it is damaged."""
    try:
        run: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: this run cannot be read ({error}); remove it, and it is made again") from error
    return run if isinstance(run, dict) and {"settings", "scores"} <= run.keys() else None


def _key(settings: Row) -> str:
    return json.dumps(settings)  # unsorted: the order of steps counts


def _run(grid: Grid, variant: Planned, seed: int, recipe: Recipe, folder: Path, others: dict[str, Row]) -> Row:
    """Train and score one variant with one seed, or read what is kept of it or of the same run elsewhere."""
    kept = folder.with_name(f"{folder.name}.json")
    settings = {
        "recipe": recipe.canonical(),
        "data": grid.data,
        "pictures": grid.pictures,
        "metrics": list(grid.metrics),
    }
    if kept.exists():
        known = _kept_run(kept)
        if known is None or known.pop("settings") != settings:
            raise UsageError(f"{kept}: this run was made with other settings; remove it, or use another -o")
        return known
    entry = _entry(grid, recipe)
    if not folder.exists() and _key(settings) in others:
        return _keep(kept, {**others[_key(settings)], "variant": variant.name, "seed": seed}, settings)
    if not folder.exists():
        cpu = time.process_time()
        finished = train(recipe, folder, resume=partial_of(folder).exists())
        spent = {"seconds": round(finished.seconds, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
        (folder / "spent.json").write_text(json.dumps(spent), encoding="utf-8")
    spent = json.loads((folder / "spent.json").read_text(encoding="utf-8")) if (folder / "spent.json").exists() else {}
    model, processor = load_checkpoint(folder)
    started = time.monotonic()
    scores = evaluate(model, processor, recipe.model_copy(update={"evaluate": (entry,)}), samples=grid.pictures)[0]
    asked = len({str(sample.provenance) for sample, _, _ in scores.answers})
    values = {name: scores.values[name].get(name) for name in grid.metrics}
    if empty := [name for name, value in values.items() if value is None]:
        raise UsageError(f"{folder.name}: no question of `{label(entry)}` is scored by {', '.join(empty)}")
    row = {
        "variant": variant.name,
        "seed": seed,
        "scores": values,
        "seconds_per_picture": round((time.monotonic() - started) / max(1, asked), 5),
        **spent,
    }
    return _keep(kept, row, settings)


def _keep(kept: Path, row: Row, settings: Row) -> Row:
    """Write a finished run so that it is there whole or not at all."""
    staging = kept.with_suffix(".tmp")
    staging.write_text(json.dumps({**row, "settings": settings}, indent=2) + "\n", encoding="utf-8")
    staging.rename(kept)
    return row


def _entry(grid: Grid, recipe: Recipe) -> Any:
    """The evaluation that the table is about, with the sweep's metrics."""
    named = {label(entry): entry for entry in reversed(recipe.evaluate)}
    name = grid.data or (label(recipe.evaluate[0]) if recipe.evaluate else "")
    if name not in named:
        raise UsageError(f"sweep: no evaluation '{name}' in the recipe; it has {', '.join(reversed(named)) or 'none'}")
    entry = named[name]
    missing = [metric for metric in grid.metrics if metric not in {config.type for config in entry.metrics}]
    if missing:
        raise UsageError(f"sweep: evaluation '{name}' does not compute {', '.join(missing)}")
    return entry


def as_rows(grid: Grid, variants: Sequence[Planned], runs: Sequence[Row]) -> list[Row]:
    """The table: a row per variant with its costs and means over seeds."""
    rows = []
    for variant in variants:
        mine = [run for run in runs if run["variant"] == variant.name]
        row: Row = {
            "variant": variant.name,
            "parameters": variant.parameters,
            "visual tokens": variant.visual_tokens,
            "ms per picture": round(1000 * sum(run["seconds_per_picture"] for run in mine) / len(mine), 2),
        }
        row |= {metric: str(estimate([run["scores"][metric] for run in mine])) for metric in grid.metrics}
        rows.append(row | ({"note": variant.exempt} if variant.exempt else {}))
    return rows


def contrasts(grid: Grid, runs: Sequence[Row]) -> list[Row]:
    """Differences between variants, paired by seed."""
    found = {(run["variant"], run["seed"]): run["scores"] for run in runs}
    rows = []
    for first, second in pairs(grid):
        row: Row = {"difference": f"{first} - {second}"}
        for metric in grid.metrics:
            row[metric] = str(
                estimate([found[first, seed][metric] - found[second, seed][metric] for seed in grid.seeds])
            )
        rows.append(row)
    return rows


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)"
