"""`fusionkit bench`: blocks timed beside their peers and the machine's limits."""

from __future__ import annotations

import json as json_text
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fusionkit.cli.options import PluginOption, SetOption, load_plugins, open_recipe
from fusionkit.cli.output import emit, note, table
from fusionkit.errors import UsageError

if TYPE_CHECKING:
    from fusionkit.bench.case import Case, LeftOut
    from fusionkit.bench.run import Progress


class Mode(StrEnum):
    """What is timed."""

    fwd = "fwd"
    fwdbwd = "fwdbwd"
    step = "step"


class Dtype(StrEnum):
    """What it is timed in."""

    fp32 = "fp32"
    bf16 = "bf16"


class Device(StrEnum):
    """Where."""

    cpu = "cpu"
    cuda = "cuda"


def command(
    blocks: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FAMILY/NAME]...", help="Blocks or whole families; with --recipe, its steps."),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="Measure the steps of a recipe, on its shapes.")
    ] = None,
    shape: Annotated[
        str,
        typer.Option(
            "--shape", help="layers=, grid=HxW, width=, crops=, memory_grid=, memory_width=; crops= only with --recipe."
        ),
    ] = "",
    dtype: Annotated[Dtype, typer.Option("--dtype", help="Type of tokens and weights.")] = Dtype.fp32,
    mode: Annotated[
        Mode,
        typer.Option(
            "--mode", help="fwd: inference; fwdbwd: forward and backward; step: four of these, one optimizer step."
        ),
    ] = Mode.fwd,
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against",
            metavar="PEER",
            help="A peer, another FAMILY/NAME, or none; all peers by default. May be repeated.",
        ),
    ] = None,
    device: Annotated[Device, typer.Option("--device", help="Where to run.")] = Device.cpu,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="How often every variant is visited.")] = 5,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE.jsonl", help="Store every row, one JSON a line.")
    ] = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw roofline and ratios.")] = None,
    set: SetOption = None,
    plugin: PluginOption = None,
) -> None:
    """Time blocks beside their peers, after checking all of them against float64.

    A matrix product and a copy are measured first: the limits. Variants are visited in shuffled rounds; the block runs
    twice, which shows the noise. What fails or cannot be compared is a row too. Without --recipe, --set changes options
    of the block. Exit code 1 if any row failed.

    \b
    Examples:
      fusionkit bench mixers/orthogonal --shape layers=27,grid=24x24,width=1152
      fusionkit bench mixers/orthogonal --set share=encoder --mode step --against torch_orthogonal
      fusionkit bench rope_cross_attention --shape grid=24x24,width=1152,memory_grid=14x14 --set heads=9
      fusionkit bench --recipe tiny --json tiny.jsonl --plot tiny.png
      fusionkit bench acme.temper --plugin ./my_block.py --rounds 9
    """
    # Read when torch's profiler loads; it would warn of every GPU that is not there.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    load_plugins(plugin)
    from fusionkit.bench.plot import check_plot, draw
    from fusionkit.bench.run import run
    from fusionkit.bench.table import COLUMNS, NUMBERS, cells, explanation
    from fusionkit.bench.variants import Setting

    if plot is not None:
        check_plot(plot)
    cases, left_out = _cases(blocks or [], recipe, shape, set)
    rows: list[dict[str, Any]] = []
    setting = Setting(mode.value, dtype.value, device.value)
    with _progress() as on_progress, _sink(json) as store:
        for row in run(
            cases, setting, left_out=left_out, rounds=rounds, against=against or (), on_progress=on_progress
        ):
            store(row)
            rows.append(row)
    table(COLUMNS, [cells(row) for row in rows], right=NUMBERS)
    for line in explanation(rows):
        emit(line)
    if plot is not None:
        draw(rows, plot)
        note(f"wrote {plot}")
    if any(row["status"] == "fail" for row in rows):
        raise typer.Exit(1)


def _cases(
    blocks: list[str], recipe: str | None, shape: str, changes: list[str] | None
) -> tuple[list[Case], list[LeftOut]]:
    from fusionkit.bench.case import cases_from_names, cases_from_recipe, parse_shape

    wanted = parse_shape(shape)
    if recipe is not None:
        if shape and [part.split("=")[0].strip() for part in shape.split(",")] != ["crops"]:
            raise UsageError(f"--shape {shape}: a recipe has its own shapes; only crops= can be given with --recipe")
        return cases_from_recipe(open_recipe(recipe, changes), wanted.crops, blocks)
    if not blocks:
        raise UsageError(
            "name a block, a family or a recipe, for example `fusionkit bench mixers` or "
            "`fusionkit bench --recipe tiny` (`fusionkit list` shows all blocks)"
        )
    return cases_from_names(blocks, wanted, _options(changes)), []


def _options(changes: list[str] | None) -> dict[str, Any]:
    """`--set` for blocks that stand in no recipe."""
    from fusionkit.recipe.overrides import override
    from fusionkit.recipe.tree import Table, plain

    found: dict[str, Any] = plain(override(Table({}), changes or ()))
    return found


@contextmanager
def _sink(path: Path | None) -> Iterator[Any]:
    """Writes rows as they come, so that an interrupted run keeps what it has measured."""
    if path is None:
        yield lambda row: None
        return
    with path.open("w", encoding="utf-8") as file:

        def store(row: dict[str, Any]) -> None:
            file.write(json_text.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            file.flush()

        yield store
    note(f"wrote {path}")


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on a terminal, else a line for every case."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        last = [""]

        def say(what: str, done: int, total: int) -> None:
            if what != last[0]:
                note(f"{what} ({done}/{total} rounds)")
            last[0] = what

        yield say
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("start")
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)
