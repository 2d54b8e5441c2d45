"""`fusionkit boxes questions | score | sheet`: what a dataset asks, how good answers from anywhere are, and the worst of them."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fusionkit.cli.options import JsonOption, PluginOption, load_plugins
from fusionkit.cli.output import emit, emit_json, note, table, watching
from fusionkit.cli.writing import check_picture_name, make_folder, print_or_write, write_picture

if TYPE_CHECKING:
    from fusionkit.evaluate.scores import Answered

DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="DATA",
        help='A dataset with settings: `refcoco,root=data/refcoco,split=val`, `"refcoco,splits=[val,testA]"`.',
    ),
]
PredictionsArg = Annotated[
    Path, typer.Argument(metavar="PREDICTIONS.jsonl", help="One answer per line.", show_default=False)
]
FormatOption = Annotated[
    str | None, typer.Option("--from", metavar="FORMAT", help="Read each `text` in this format instead of `boxes`.")
]


def questions(
    data: DataOption,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="OUT.jsonl", help="Where to; stdout if not given.")
    ] = None,
    plugin: PluginOption = None,
) -> None:
    """Write what a dataset asks, one question per line with its `id`, picture and size, for any model to answer.

    \b
    Examples:
      fusionkit boxes questions --data refcoco,root=data/refcoco,split=val -o questions.jsonl
      fusionkit boxes questions --data coco_boxes,annotations=data/coco/instances.json
    """
    load_plugins(plugin)
    from fusionkit.data.questions import question_row, questions_of, samples_of
    from fusionkit.data.short_blocks import make_block

    asked = questions_of(samples_of(make_block("datasets", data), watching("reading")))
    lines = [jsonlib.dumps(question_row(*each), ensure_ascii=False) for each in asked]
    print_or_write(lines, output, f"{len(lines)} questions")


def score(
    predictions: PredictionsArg,
    data: DataOption,
    source: FormatOption = None,
    metric: Annotated[
        list[str] | None,
        typer.Option("--metric", metavar="METRIC", help="Score by this: `pointing,within=mask`. May be repeated."),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="OTHER.jsonl", help="Another run's answers: say how sure the difference is."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FOLDER", help="Folder for scores.json, answers.jsonl, report.html."),
    ] = None,
    plugin: PluginOption = None,
    json: JsonOption = False,
) -> None:
    """Score answers that any model gave to a dataset's questions, without the model.

    An answer is a line {"id": ..., "text": ...} with the `id` of its question (see `boxes questions`), or all lines in
    the order of the questions; boxes and points may also stand in pixels as `boxes` and `points`. Each score has its
    95 % interval, by drawing pictures anew. Questions with several tags, such as splits, are scored by tag too.

    \b
    Examples:
      fusionkit boxes score answers.jsonl --data refcoco,root=data/refcoco,split=val --from qwen2_5_vl
      fusionkit boxes score new.jsonl --against old.jsonl --data refcoco,split=val --from paligemma -o report
      fusionkit boxes score answers.jsonl --data "pixmo,parts=[points]" --from molmo_points --metric pointing,tolerance=3
    """
    if output is not None:
        make_folder(output)
    load_plugins(plugin)
    from fusionkit.data.short_blocks import read_block
    from fusionkit.evaluate.predictions import score as score_answers
    from fusionkit.evaluate.report import as_rows, write_report

    for text in metric or ():
        read_block("metrics", text)  # a wrong name is told before the work
    answers, others = _answers(data, source, predictions, against)
    scored = score_answers(answers, metric or (), data.partition(",")[0])
    rows = as_rows([scored.scores])
    differences = [] if others is None else scored.differences(score_answers(others, metric or (), scored.name))
    if json:
        emit_json({"scores": rows, "differences": differences} if against is not None else rows)
    else:
        _print(rows)
        if differences:
            emit()
            _print(differences)
    if output is not None:
        facts: dict[str, Any] = {"answers": str(predictions), "format": source or "boxes and points", "data": data}
        facts |= {"against": str(against), "differences": differences} if against is not None else {}
        note(f"report: {write_report(output, f'Scores of {predictions.name}', [scored.scores], facts)}")


def sheet(
    predictions: PredictionsArg,
    data: DataOption,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT.png", help="Where to draw.")],
    source: FormatOption = None,
    number: Annotated[int, typer.Option("-n", "--number", min=1, max=400, help="Most answers on the page.")] = 24,
    order: Annotated[
        Literal["worst", "best", "spread"],
        typer.Option("--order", help="Lowest scores first, highest first, or evenly from lowest to highest."),
    ] = "worst",
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric", metavar="METRIC", help="What ranks them; IoU for boxes and F1 for points if not given."
        ),
    ] = None,
    plugin: PluginOption = None,
) -> None:
    """Draw answers over their pictures beside the truth (green, dashed), the worst first: to see what goes wrong.

    \b
    Examples:
      fusionkit boxes sheet answers.jsonl --data refcoco,split=val --from qwen2_5_vl -o worst.png
      fusionkit boxes sheet answers.jsonl --data refcoco,split=val --from norm1000 --order spread -n 12 -o some.png
    """
    check_picture_name(output)
    load_plugins(plugin)
    from fusionkit.evaluate.draw import annotate
    from fusionkit.evaluate.draw import sheet as one_page
    from fusionkit.evaluate.predictions import worst_first

    answers, _ = _answers(data, source, predictions, None)
    ranked = [item for item in worst_first(answers, metric) if item[1][0].open_image is not None]
    pages = []
    for value, (sample, turn, prediction) in _chosen(ranked, number, order):
        if sample.open_image is not None:
            pages.append(annotate(sample.open_image(), f"{value:.2f}  {turn.question}", prediction, turn))
    write_picture(output, one_page(pages, widest=480))
    note(f"wrote {output} with {len(pages)} of {len(ranked)} answers ({order})")


def _answers(
    data: str, source: str | None, predictions: Path, against: Path | None
) -> tuple[list[Answered], list[Answered] | None]:
    """The questions of the data with their answers, and with those of another run."""
    from fusionkit.data.convert_boxes import make_tokenizer
    from fusionkit.data.questions import samples_of
    from fusionkit.data.short_blocks import make_block
    from fusionkit.evaluate.predictions import match, read_rows

    tokenizer = None if source is None else make_tokenizer(source)
    files = [path for path in (predictions, against) if path is not None]
    rows = [read_rows(path, "fusionkit boxes") for path in files]
    samples = samples_of(make_block("datasets", data), watching("reading"))
    matched = [match(found, samples, tokenizer, path) for found, path in zip(rows, files, strict=True)]
    return matched[0], matched[1] if against is not None else None


def _chosen(ranked: list[Any], number: int, order: str) -> list[Any]:
    if order == "best":
        return ranked[::-1][:number]
    if order == "worst" or len(ranked) <= number:
        return ranked[:number]
    last = len(ranked) - 1
    return [ranked[round(last * place / max(1, number - 1))] for place in range(number)]


def _print(rows: list[dict[str, Any]]) -> None:
    from fusionkit.evaluate.tables import cell, columns_of

    columns = columns_of(rows)
    table(columns, [[cell(row.get(column)) for column in columns] for row in rows])
