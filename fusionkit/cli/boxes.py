"""`fusionkit boxes`: boxes and points into and out of the texts of model families, and pictures of them."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fusionkit.cli.boxes_score import questions, score, sheet
from fusionkit.cli.options import PluginOption, load_plugins
from fusionkit.cli.output import note, watching
from fusionkit.cli.writing import check_picture_name, print_or_write, write_picture
from fusionkit.errors import UsageError

if TYPE_CHECKING:
    from fusionkit.data.convert_boxes import Converted, Row
    from fusionkit.geometry import Size

LISTED = 10
"""Malformed pieces named on stderr."""

app = typer.Typer(
    name="boxes",
    help="Boxes and points of any model family: convert, score, draw.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

app.command()(questions)
app.command()(score)
app.command()(sheet)

FileArg = Annotated[Path, typer.Argument(metavar="FILE.jsonl", help="One JSON object per line.", show_default=False)]
FromOption = Annotated[
    str,
    typer.Option(
        "--from", metavar="FORMAT", help="Box tokenizer of the texts: `paligemma`, `coordinate_bins,bins=100`."
    ),
]
ToOption = Annotated[str, typer.Option("--to", metavar="FORMAT", help="Box tokenizer to write.")]
OutputOption = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="OUT.jsonl", help="Where to; stdout if not given.")
]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="Refuse what is not written exactly as the format writes it.")
]


@app.command()
def encode(file: FileArg, to: ToOption, output: OutputOption = None, plugin: PluginOption = None) -> None:
    """Write the boxes and points of every row as text of a format.

    A row: {"size": [640, 480], "boxes": [[64, 48, 320, 240, "cat"]], "points": [[320, 120]]} in pixels; labels may be
    left out, and `image` may stand for `size`. The text replaces them as `text`.

    \b
    Examples:
      fusionkit boxes encode truth.jsonl --to coordinate_bins
      fusionkit boxes encode truth.jsonl --to molmo_points -o texts.jsonl
    """
    from fusionkit.data.convert_boxes import Converted, encode_row, make_tokenizer

    load_plugins(plugin)
    tokenizer, found = make_tokenizer(to), Converted()
    _write(file, lambda row, size, line: encode_row(row, size, tokenizer, found), found, output)
    _say_bound(found)


@app.command()
def decode(
    file: FileArg,
    source: FromOption,
    output: OutputOption = None,
    strict: StrictOption = False,
    plugin: PluginOption = None,
) -> None:
    """Read boxes and points out of the `text` of every row, in pixels of its picture; malformed pieces are reported.

    \b
    Examples:
      fusionkit boxes decode answers.jsonl --from paligemma
      fusionkit boxes decode answers.jsonl --from qwen2_5_vl -o predictions.jsonl
    """
    from fusionkit.data.convert_boxes import Converted, decode_row, make_tokenizer

    load_plugins(plugin)
    tokenizer, found = make_tokenizer(source), Converted()
    _write(file, lambda row, size, line: decode_row(row, size, tokenizer, found, line, strict), found, output)
    _say_malformed(file, found)


@app.command()
def transcode(
    file: FileArg,
    source: FromOption,
    to: ToOption,
    output: OutputOption = None,
    strict: StrictOption = False,
    plugin: PluginOption = None,
) -> None:
    """Change the format of boxes and points in `text` and in the answers of `conversations`; other words stay.

    Says how far coordinates moved, and how far they can at most. Malformed pieces stay as they are and are reported.

    \b
    Examples:
      fusionkit boxes transcode train.jsonl --from paligemma --to coordinate_bins -o mine.jsonl
      fusionkit boxes transcode train.jsonl --from qwen2_5_vl,max_pixels=2007040 --to norm1000 --strict
    """
    from fusionkit.data.convert_boxes import Converted, make_tokenizer, transcode_row

    load_plugins(plugin)
    reader, writer, found = make_tokenizer(source), make_tokenizer(to), Converted()
    _write(file, lambda row, size, line: transcode_row(row, size, reader, writer, found, line, strict), found, output)
    _say_malformed(file, found)
    _say_bound(found)
    if found.items:
        note(f"worst error in this file: {found.moved:.3g} px")


@app.command()
def draw(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="The picture.", show_default=False)],
    predictions: Annotated[
        Path, typer.Argument(metavar="PREDICTIONS.json", help="One object, or a list.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT.png", help="Where to draw.")],
    truth: Annotated[
        Path | None,
        typer.Option("--truth", metavar="TRUTH.json", help="True boxes and points, drawn green and dashed."),
    ] = None,
    source: Annotated[
        str | None, typer.Option("--from", metavar="FORMAT", help="Read each `text` in this format instead of `boxes`.")
    ] = None,
    plugin: PluginOption = None,
) -> None:
    """Draw boxes and points on a picture; several objects become one sheet.

    An object has `boxes` and `points` in pixels of the picture (as `ask --json` and `boxes decode` write them) and
    perhaps a `question`.

    \b
    Examples:
      fusionkit boxes draw photo.jpg predictions.json -o out.png
      fusionkit boxes draw photo.jpg answers.json --from paligemma --truth truth.json -o out.png
    """
    from fusionkit.data.convert_boxes import make_tokenizer
    from fusionkit.evaluate.draw import annotate, sheet
    from fusionkit.evaluate.predictions import read_prediction, read_rows
    from fusionkit.geometry import Size
    from fusionkit.pictures import open_picture
    from fusionkit.sample import Turn

    check_picture_name(output)
    load_plugins(plugin)
    tokenizer = None if source is None else make_tokenizer(source)
    picture = open_picture(image)
    size = Size(*picture.size)
    rows = read_rows(predictions, "boxes draw")
    known = [] if truth is None else read_rows(truth, "boxes draw")
    if known and len(known) != len(rows):
        raise UsageError(f"{truth} has {len(known)} objects, {predictions} {len(rows)}; expected one for each")
    pages = []
    for number, (where, row) in enumerate(rows):
        found = read_prediction(row, size, tokenizer, where)
        turn = None
        if known:
            true = read_prediction(known[number][1], size, None, known[number][0])
            turn = Turn("", (*true.boxes, *true.points))
        pages.append(annotate(picture, str(row.get("question", "")), found, turn))
    write_picture(output, pages[0] if len(pages) == 1 else sheet(pages))
    note(f"wrote {output}")


def _write(file: Path, convert: Callable[[Row, Size, int], Row], found: Converted, output: Path | None) -> None:
    """Convert all rows, then write them: a file with a bad row leaves nothing half written."""
    from fusionkit.data.convert_boxes import convert_file

    lines = [jsonlib.dumps(row, ensure_ascii=False) for row in convert_file(file, convert, found, watching(file.name))]
    print_or_write(lines, output, f"{found.rows} rows, {found.items} boxes and points")


def _say_malformed(file: Path, found: Converted) -> None:
    for line, piece in found.malformed[:LISTED]:
        note(f"{file}:{line}: malformed: {piece[:120]}")
    if found.malformed:
        note(f"{len(found.malformed)} malformed pieces in {found.rows} rows")


def _say_bound(found: Converted) -> None:
    if found.bound_size is not None:
        note(f"worst error: at most {found.bound:.3g} px (in a picture of {found.bound_size})")
