"""`fusionkit data`: check your own training data, or write samples of a recipe's data as files."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from fusionkit.cli.options import JsonOption, PluginOption, RecipeArg, SetOption, open_recipe
from fusionkit.cli.output import emit, emit_json, note
from fusionkit.cli.writing import check_picture_name, write_picture
from fusionkit.errors import DataError, UsageError

if TYPE_CHECKING:
    from fusionkit.data.check import Report
    from fusionkit.recipe import Recipe

LISTED = 20
"""Findings printed of each sort; `--json` has all."""

_T = TypeVar("_T")

app = typer.Typer(
    name="data",
    help="Check your own training data, or write sample questions.",
    epilog="""Examples:

\b
  fusionkit data check mine.jsonl -o sheet.png
  fusionkit data sample tiny -n 6 -o questions""",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@app.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The .jsonl file.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="SHEET.png", help="Draw rows with their boxes on one page."),
    ] = None,
    shown: Annotated[int, typer.Option("--shown", min=1, max=400, help="Most rows on the page.")] = 24,
    json: JsonOption = False,
) -> None:
    """Read every row and picture of a JSONL file: what is in it, what is broken (by line), boxes outside the picture.

    Ends with exit code 2 when a row cannot be used. The format: one object per line,

    \b
      {"image": "cats.jpg", "boxes": [[12, 30, 210, 180]], "points": [],
       "conversations": [{"from": "human", "value": "Where is the cat?"},
                         {"from": "gpt", "value": "<box>"}]}

    with boxes [x0, y0, x1, y1] and points [x, y] in pixels; each <box> or <point> in an answer is the next of them.

    \b
    Examples:
      fusionkit data check mine.jsonl
      fusionkit data check mine.jsonl -o sheet.png
      fusionkit data check mine.jsonl --json
    """
    from fusionkit.data.check import check as examine

    if output is not None:
        check_picture_name(output)
    report = examine(file, shown, _progress)
    if json:
        emit_json(report)
    else:
        _print(report)
    if output is not None:
        _draw(report, file, output)
    if report.broken:
        raise DataError(f"{file}: {len(report.broken)} of {report.rows} rows cannot be used; mend or remove them")


@app.command()
def overlap(
    first: Annotated[Path, typer.Argument(metavar="A", help="A folder of pictures, or a .jsonl file that names them.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="The other set, for example the test data.")],
    distance: Annotated[
        int, typer.Option("--distance", help="In how many of 64 bits near-duplicates may differ, 0 to 7.")
    ] = 4,
    json: JsonOption = False,
) -> None:
    """Find near-duplicate pictures of A in B, by a perceptual hash: does the training data hold the test data?

    \b
    Examples:
      fusionkit data overlap train.jsonl test.jsonl
      fusionkit data overlap coco/train2014 my_test_pictures --json
    """
    from fusionkit.data.overlap import overlap as compare

    found = compare(first, second, distance, _progress)
    if json:
        emit_json({"first": found.first, "second": found.second, "share": found.share, "pairs": found.pairs})
        return
    twins = len({pair.second for pair in found.pairs})
    emit(f"{twins} of {found.second} pictures of {second} have a near-duplicate among {found.first} of {first}")
    for pair in found.pairs[:LISTED]:
        emit(f"  {pair.second}  {pair.first}  ({pair.distance} of 64 bits differ)")
    if len(found.pairs) > LISTED:
        emit(f"  and {len(found.pairs) - LISTED} more; --json lists all")


@app.command()
def sample(
    recipe: RecipeArg,
    number: Annotated[int, typer.Option("-n", "--number", min=1, help="How many pictures.")] = 6,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Where to.")] = Path("samples"),
    evaluation: Annotated[
        str | None,
        typer.Option("--evaluation", metavar="NAME", help="Which of the recipe's evaluations; the first if not given."),
    ] = None,
    start: Annotated[int, typer.Option("--start", min=0, help="The first sample to take.")] = 0,
    set: SetOption = None,
    plugin: PluginOption = None,
) -> None:
    """Write samples of a recipe's held-out data as pictures and a JSONL file, to look at or to ask about.

    \b
    Examples:
      fusionkit data sample tiny -n 6 -o questions
      fusionkit ask checkpoint:tiny --questions questions/questions.jsonl -o answers
    """
    from fusionkit.data.write import write_samples

    dataset = _evaluation_data(open_recipe(recipe, set, plugin), evaluation)
    if start + number > len(dataset):
        left = max(0, len(dataset) - start)
        raise UsageError(
            f"the data has {len(dataset)} samples; asked for {start} to {start + number - 1} "
            + (f"(use -n {left})" if left else "(use a smaller --start)")
        )
    path = write_samples((dataset[index] for index in range(start, start + number)), output)
    emit(str(path))


def _evaluation_data(recipe: Recipe, name: str | None) -> Any:
    """The dataset of an evaluation of the recipe."""
    from fusionkit import registry
    from fusionkit.plugin import BlockSite

    if not recipe.evaluate:
        raise UsageError("the recipe has no `evaluate` section to take samples from")
    named = {each.name or each.data.type: each for each in reversed(recipe.evaluate)}
    if name is not None and name not in named:
        raise UsageError(f"no evaluation '{name}' in the recipe; it has {', '.join(reversed(named))}")
    config = (recipe.evaluate[0] if name is None else named[name]).data
    return registry.factory(registry.spec("datasets", config.type))(config, BlockSite())


def _progress(rows: Iterable[_T]) -> Iterable[_T]:
    """A progress bar on stderr; in a pipe nobody waits for it."""
    if not sys.stderr.isatty():
        return rows
    from rich.console import Console
    from rich.progress import track

    return track(rows, "checking", console=Console(stderr=True), transient=True)


def _print(report: Report) -> None:
    emit(f"{report.file}: {report.rows} rows, {report.usable} usable, {len(report.broken)} broken")
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(report.turns.items()))
    emit(f"questions  {sum(report.turns.values())}" + (f" ({kinds})" if kinds else ""))
    emit(
        f"boxes      {report.boxes}"
        + (f", {len(report.outside)} over the edge of their picture" if report.outside else "")
    )
    emit(f"points     {report.points}")
    if report.smallest is not None:
        same = report.smallest == report.largest
        emit(f"pictures   {report.smallest}" + ("" if same else f" to {report.largest}") + " pixels")
    if report.without_picture:
        emit(f"           {report.without_picture} rows have none")
    for title, findings in (("broken", report.broken), ("outside (cut at the edge when used)", report.outside)):
        if findings:
            emit()
            emit(f"{title}:")
            for finding in findings[:LISTED]:
                emit(f"  line {finding.line}: {finding.message}")
            if len(findings) > LISTED:
                emit(f"  and {len(findings) - LISTED} more; --json lists all")


def _draw(report: Report, file: Path, output: Path) -> None:
    from fusionkit.data.contact_sheet import contact_sheet
    from fusionkit.data.read import open_jsonl

    if not report.chosen:
        note(f"{output} is not written: no usable row has a picture")
        return
    dataset = open_jsonl(file)
    write_picture(output, contact_sheet([dataset[index] for index in report.chosen]))
    note(f"wrote {output} with {len(report.chosen)} rows")
