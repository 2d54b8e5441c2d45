"""`fusionkit bench`: blocks timed beside their peers and the machine's limits."""

from __future__ import annotations

import json as json_text
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fusionkit.cli.bench_options import Device, Dtype, Mode
from fusionkit.cli.options import PluginOption, SetOption, load_plugins, open_recipe
from fusionkit.cli.output import emit, note, progress_bar, table
from fusionkit.errors import UsageError

if TYPE_CHECKING:
    from fusionkit.bench.case import AnyCase, LeftOut
    from fusionkit.bench.run import Progress

QUIET = 5.0
"""Seconds between lines of progress on one case where there is no terminal."""


def command(
    blocks: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FAMILY/NAME]...",
            help="Blocks or whole families; with --recipe, its addresses, types or `vision`.",
        ),
    ] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option("--recipe", help="Measure a recipe's blocks and its vision side, on its shapes."),
    ] = None,
    shape: Annotated[
        str,
        typer.Option(
            "--shape",
            help="layers=, grid=HxW, width=, crops=, memory_grid=, memory_width=, text=; crops= only with --recipe.",
        ),
    ] = "",
    crops: Annotated[int | None, typer.Option("--crops", min=1, help="The same as --shape crops=N.")] = None,
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
    backend: Annotated[
        list[str] | None,
        typer.Option(
            "--backend",
            metavar="NAME",
            help="Run our block so, too: sdpa, eager, xformers, flex; flash, efficient, cudnn, math (SDPA's kernels); "
            "triton (sums of layers); compile; graph. May be repeated.",
        ),
    ] = None,
    device: Annotated[Device, typer.Option("--device", help="Where to run.")] = Device.cpu,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="How often every variant is visited.")] = 5,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0, help="Begin no other round of a case after so long.")
    ] = 60,
    answers: Annotated[
        str | None,
        typer.Option(
            "--answers",
            metavar="10,30,65",
            help="End to end instead: time to the first token and for answers of so many, ratios to the first --recipe.",
        ),
    ] = None,
    details: Annotated[bool, typer.Option("--details", help="A line for every variant, of several cases too.")] = False,
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
    of the block. Weights are random: nothing is downloaded. Exit code 1 if any row failed.

    \b
    Examples:
      fusionkit bench --recipe tiny --json tiny.jsonl --plot tiny.png
      fusionkit bench --recipe come_vl vision streams.semantic --crops 1
      fusionkit bench mixers/orthogonal --shape layers=27,grid=24x24,width=1152
      fusionkit bench mixers/orthogonal --set share=encoder --mode step --against torch_orthogonal
      fusionkit bench rope_cross_attention --shape grid=24x24,width=1152,memory_grid=14x14 --set heads=9 --backend eager
      fusionkit bench acme.temper --plugin ./my_block.py --rounds 9
      fusionkit bench --recipe molmo_siglip2 --recipe come_vl --answers 10,30,65 --device cuda --dtype bf16
    """
    # Read when torch's profiler loads; it would warn of every GPU that is not there.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    load_plugins(plugin)
    from fusionkit.bench.plot import check_plot, draw
    from fusionkit.bench.run import run
    from fusionkit.bench.variants import Setting

    if plot is not None:
        check_plot(plot)
    if json is not None and not json.parent.is_dir():
        raise UsageError(f"--json {json}: there is no folder {json.parent}")
    setting = Setting(mode.value, dtype.value, device.value)
    if answers is not None:
        given = {
            "a block": blocks,
            "--shape": shape,
            "--mode": mode is not Mode.fwd,
            "--against": against,
            "--backend": backend,
            "--plot": plot,
            "--details": details,
        }
        if unused := [name for name, value in given.items() if value]:
            raise UsageError(f"--answers times whole models from pixels to words: leave out {', '.join(unused)}")
        _end_to_end(recipe or [], answers, crops, setting, rounds, json, set)
        return
    cases, left_out = _cases(blocks or [], recipe or [], shape, crops, set)
    rows: list[dict[str, Any]] = []
    with _progress() as on_progress, _sink(json) as store:
        for row in run(
            cases,
            setting,
            left_out=left_out,
            rounds=rounds,
            seconds=seconds or None,
            against=against or (),
            backends=backend or (),
            on_progress=on_progress,
        ):
            store(row)
            rows.append(row)
    _show(rows, details or len(cases) == 1)
    if plot is not None:
        draw(rows, plot)
        note(f"wrote {plot}")
    if any(row["status"] == "fail" for row in rows):
        raise typer.Exit(1)


def _show(rows: Sequence[dict[str, Any]], in_full: bool) -> None:
    from fusionkit.bench.summary import SUMMARY, SUMMARY_NUMBERS, alternatives, summary, unmeasured
    from fusionkit.bench.table import COLUMNS, NUMBERS, cells, explanation

    if in_full:
        table(COLUMNS, [cells(row) for row in rows], right=NUMBERS)
    else:
        table(SUMMARY, summary(rows), right=SUMMARY_NUMBERS)
        if named := alternatives(rows):
            emit("alternatives (time / ours), the dearest first:")
            columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 120
            for line in named:
                emit(textwrap.fill(line, columns, initial_indent="  ", subsequent_indent="    "))
        for line in unmeasured(rows):
            emit(line)
    for line in explanation(rows, brief=not in_full):
        emit(line)


def _cases(
    blocks: list[str], recipes: list[str], shape: str, crops: int | None, changes: list[str] | None
) -> tuple[Sequence[AnyCase], list[LeftOut]]:
    from fusionkit.bench.cases import cases_from_names, cases_from_recipe
    from fusionkit.bench.shape import parse_shape

    wanted = parse_shape(shape)
    if crops is not None:
        if "crops" in shape:
            raise UsageError(f"--crops {crops} and --shape {shape}: give the crops once")
        wanted = replace(wanted, crops=crops)
    if len(recipes) > 1:
        raise UsageError("several --recipe are compared end to end: add --answers 10,30,65, or name one recipe")
    if recipes:
        if shape and [part.split("=")[0].strip() for part in shape.split(",")] != ["crops"]:
            raise UsageError(f"--shape {shape}: a recipe has its own shapes; only crops= can be given with --recipe")
        return cases_from_recipe(open_recipe(recipes[0], changes), wanted.crops, blocks)
    if not blocks:
        raise UsageError(
            "name a block, a family or a recipe, for example `fusionkit bench mixers` or "
            "`fusionkit bench --recipe tiny` (`fusionkit list` shows all blocks)"
        )
    return cases_from_names(blocks, wanted, _options(changes))


def _options(changes: list[str] | None) -> dict[str, Any]:
    """`--set` for blocks that stand in no recipe; null is a value here, since there is nothing that it could remove."""
    from fusionkit.recipe.overrides import override
    from fusionkit.recipe.tree import Table, plain

    nulls = [change for change in changes or () if change.partition("=")[2].strip() == "null"]
    found: dict[str, Any] = plain(override(Table({}), [change for change in changes or () if change not in nulls]))
    for change in nulls:
        *way, last = change.partition("=")[0].strip().split(".")
        place = found
        for name in way:
            place = place.setdefault(name, {})
        place[last] = None
    return found


def _end_to_end(
    recipes: list[str],
    answers: str,
    crops: int | None,
    setting: Any,
    rounds: int,
    json: Path | None,
    changes: list[str] | None,
) -> None:
    """`--answers`: whole models, from pixels to the last token."""
    from fusionkit.bench.answers import answer_table, parse_lengths, run_answers

    if not recipes:
        raise UsageError(
            "--answers: name recipes to compare, the reference first (--recipe molmo_siglip2 --recipe come_vl)"
        )
    lengths = parse_lengths(answers)
    loaded = [open_recipe(recipe, changes) for recipe in recipes]
    rows = []
    with _progress() as on_progress, _sink(json) as store:
        for row in run_answers(loaded, setting, lengths, crops, rounds, on_progress):
            store(row)
            rows.append(row)
    columns, lines = answer_table(rows, lengths)
    table(columns, lines, right=frozenset(columns) - {"recipe", "note"})
    if any(row["status"] == "fail" for row in rows):
        raise typer.Exit(1)


@contextmanager
def _sink(path: Path | None) -> Iterator[Callable[[dict[str, Any]], None]]:
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


def _progress() -> AbstractContextManager[Progress]:
    """A bar on a terminal, else a line for every case, and one every few seconds."""
    said_at, said = -QUIET, ""

    def say(what: str, done: int, total: int) -> None:
        nonlocal said_at, said
        name, now = what.partition(":")[0], time.monotonic()
        if name != said or now - said_at > QUIET:
            note(f"{what} ({done}/{total} rounds)")
            said_at, said = now, name

    return progress_bar(say)
