"""`fusionkit ask`: questions about pictures, answers as text, boxes and points, drawn where asked for."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fusionkit.cli.options import JsonOption, PluginOption, load_plugins
from fusionkit.cli.output import emit, emit_json, note
from fusionkit.cli.writing import check_picture_name, make_folder, write_picture, write_text
from fusionkit.errors import DataError, UsageError

if TYPE_CHECKING:
    from fusionkit.sample import Prediction, Sample, Turn

    Answered = list[tuple[Sample, Turn, Prediction]]

BATCH = 16
"""Pictures asked about at a time."""


def command(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A checkpoint folder, or `checkpoint:tiny`.")],
    picture: Annotated[Path | None, typer.Argument(metavar="[PICTURE", help="The picture to ask about.")] = None,
    question: Annotated[str | None, typer.Argument(metavar="QUESTION]", help="What to ask about it.")] = None,
    questions: Annotated[
        Path | None,
        typer.Option(
            "--questions",
            metavar="FILE.jsonl",
            help="Ask many: pictures and questions in the training-data format, or a folder with `questions.jsonl`.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Where to draw: a .png for one question; a folder (with index.html) for many."
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer, tokens.")] = 64,
    constrained: Annotated[
        bool, typer.Option("--constrained", help="Let the model write whole boxes and points only.")
    ] = False,
    plugin: PluginOption = None,
    json: JsonOption = False,
) -> None:
    """Ask a checkpoint about pictures; boxes and points come back in pixels of your picture.

    With --json each comes with its log p: the natural logarithm of the probability of all its tokens.

    \b
    Examples:
      fusionkit ask checkpoint:tiny photo.jpg "point to the red circle" -o out.png
      fusionkit ask runs/mine photo.jpg "how many blue shapes are there?" --json
      fusionkit ask runs/mine --questions mine.jsonl -o answers
    """
    samples = _samples(picture, question, questions)
    if output is not None:
        _check_target(output, single=questions is None)
    load_plugins(plugin)
    from fusionkit.model.folder import check_folder, find_checkpoint

    folder = find_checkpoint(checkpoint)  # what is wrong with it is told at once, not after torch is imported
    check_folder(folder)
    from fusionkit.evaluate.draw import describe
    from fusionkit.model.answer import answer
    from fusionkit.model.checkpoint import load_checkpoint

    model, processor = load_checkpoint(folder)
    answered: Answered = []
    for start in range(0, len(samples), BATCH):
        asked = samples[start : start + BATCH]
        for row in answer(model, processor, asked, max_new_tokens=max_new_tokens, constrained=constrained):
            answered.append(row)
            if not json:
                _, turn, prediction = row
                emit(describe(prediction) if questions is None else f"{turn.question} -> {describe(prediction)}")
    if json:
        rows = [_row(*row) for row in answered]
        emit_json(rows[0] if questions is None else rows)
    if output is not None:
        note(f"drawn: {draw(answered, output, checkpoint, known=questions is not None)}")


def _samples(picture: Path | None, question: str | None, questions: Path | None) -> list[Sample]:
    """What to ask; everything that can be wrong with it is found before the model is loaded."""
    if questions is not None:
        if picture is not None or question is not None:
            raise UsageError("give either a picture and a question, or --questions FILE.jsonl, not both")
        from fusionkit.data.read import read_jsonl
        from fusionkit.data.write import FILE

        return read_jsonl(questions / FILE if questions.is_dir() else questions)
    if picture is None or question is None:
        raise UsageError(
            'ask needs a picture and a question, for example: fusionkit ask checkpoint:tiny photo.jpg "count red"'
        )
    if not question.strip():
        raise DataError('the question is empty; ask something, for example "point to the red circle"')
    from fusionkit.geometry import Size
    from fusionkit.pictures import open_picture
    from fusionkit.sample import Provenance, Sample, Turn

    image = open_picture(picture)
    return [Sample(lambda: image, Size(*image.size), (Turn(question, ()),), Provenance(str(picture)))]


def _check_target(output: Path, *, single: bool) -> None:
    """Raises UsageError when answers could not be drawn there: to know it before the work."""
    if single:
        check_picture_name(output)
        make_folder(output.parent)
    else:
        make_folder(output)


def draw(answered: Answered, output: Path, checkpoint: str, *, known: bool) -> Path:
    """Draw answers: one picture to a file, or each to a folder with a page over all. Returns what to open."""
    from fusionkit.evaluate.draw import annotate, describe
    from fusionkit.evaluate.page import Picture, Section, page

    if not known:
        ((sample, turn, prediction),) = answered
        if sample.open_image is not None:
            write_picture(output, annotate(sample.open_image(), turn.question, prediction))
        return output
    sections, number = [], 0
    for asked, rows in groupby(answered, key=lambda row: row[0].provenance):
        pictures = []
        for sample, turn, prediction in rows:
            if sample.open_image is None:
                continue
            image = annotate(sample.open_image(), turn.question, prediction, turn)
            write_picture(output / f"{number:03d}.png", image)
            pictures.append(Picture(image, f"{turn.question} {describe(prediction)}"))
            number += 1
        sections.append(Section(f"{Path(asked.source).name}, line {asked.row}", pictures=pictures))
    lead = f"{number} questions about {len(sections)} pictures, answered by {checkpoint}"
    write_text(output / "index.html", page("Questions and answers", lead, sections))
    return output / "index.html"


def _row(sample: Sample, turn: Turn, prediction: Prediction) -> dict[str, Any]:
    from fusionkit.evaluate.report import log_probabilities

    return {
        "picture": sample.provenance.source,
        "question": turn.question,
        "answer": prediction.text,
        "boxes": [[box.x0, box.y0, box.x1, box.y1] for box in prediction.boxes],
        "points": [[point.x, point.y] for point in prediction.points],
        "malformed": list(prediction.malformed),
        **log_probabilities(prediction),
    }
