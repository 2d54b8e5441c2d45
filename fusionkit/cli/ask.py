"""`fusionkit ask`: questions about pictures, answers as text, boxes and points, drawn where asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fusionkit.cli.options import JsonOption, PluginOption, load_plugins
from fusionkit.cli.output import emit, emit_json, note
from fusionkit.errors import DataError, UsageError

if TYPE_CHECKING:
    from fusionkit.sample import Prediction, Sample, Turn

    Answered = list[tuple[Sample, Turn, Prediction]]


def command(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A checkpoint folder, or `checkpoint:tiny`.")],
    picture: Annotated[Path | None, typer.Argument(metavar="[PICTURE", help="The picture to ask about.")] = None,
    question: Annotated[str | None, typer.Argument(metavar="QUESTION]", help="What to ask about it.")] = None,
    questions: Annotated[
        Path | None,
        typer.Option(
            "--questions", metavar="FILE.jsonl", help="Ask many: pictures and questions in the training-data format."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Where to draw: a .png for one question; a folder (with index.html) for many."
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer, tokens.")] = 64,
    plugin: PluginOption = None,
    json: JsonOption = False,
) -> None:
    """Ask a checkpoint about pictures; boxes and points come back in pixels of your picture.

    \b
    Examples:
      fusionkit ask checkpoint:tiny photo.jpg "point to the red circle" -o out.png
      fusionkit ask runs/mine photo.jpg "how many blue shapes are there?" --json
      fusionkit ask runs/mine --questions mine.jsonl -o answers/
    """
    samples = _samples(picture, question, questions)
    load_plugins(plugin)
    from fusionkit.model.answer import answer
    from fusionkit.model.checkpoint import load_checkpoint

    model, processor = load_checkpoint(checkpoint)
    answered = [
        row
        for start in range(0, len(samples), 16)
        for row in answer(model, processor, samples[start : start + 16], max_new_tokens=max_new_tokens)
    ]
    if output is not None:
        note(f"drawn: {draw(answered, output, checkpoint, known=questions is not None)}")
    if json:
        rows = [_row(*row) for row in answered]
        emit_json(rows[0] if questions is None else rows)
        return
    from fusionkit.evaluate.draw import describe

    for _, turn, prediction in answered:
        emit(describe(prediction) if questions is None else f"{turn.question} -> {describe(prediction)}")


def _samples(picture: Path | None, question: str | None, questions: Path | None) -> list[Sample]:
    """What to ask; everything that can be wrong with it is found before the model is loaded."""
    if questions is not None:
        if picture is not None or question is not None:
            raise UsageError("give either a picture and a question, or --questions FILE.jsonl, not both")
        from fusionkit.data.read import read_jsonl

        return read_jsonl(questions)
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
    return [Sample(lambda: image, Size(*image.size), (Turn(question, ()),), Provenance(str(picture), 0))]


def draw(answered: Answered, output: Path, checkpoint: str, *, known: bool) -> Path:
    """Draw answers: one picture to a file, or each to a folder with a page over all. Returns what to open."""
    from fusionkit.evaluate.draw import annotate
    from fusionkit.evaluate.page import Section, page

    pictures = [
        annotate(sample.open_image(), turn.question, prediction, turn if known else None)
        for sample, turn, prediction in answered
        if sample.open_image is not None
    ]
    try:
        if not known:
            output.parent.mkdir(parents=True, exist_ok=True)
            pictures[0].save(output)
            return output
        output.mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(pictures):
            picture.save(output / f"{number:03d}.png")
        lead = f"{len(pictures)} questions answered by {checkpoint}."
        (output / "index.html").write_text(
            page("Questions and answers", lead, [Section("Answers", pictures=pictures)]), encoding="utf-8"
        )
    except ValueError as error:
        raise UsageError(f"{output}: cannot draw there: {error}; use a name ending in .png") from error
    except OSError as error:
        raise UsageError(f"{output}: cannot write: {error.strerror or error}") from error
    return output / "index.html"


def _row(sample: Sample, turn: Turn, prediction: Prediction) -> dict[str, Any]:
    return {
        "picture": sample.provenance.source,
        "question": turn.question,
        "answer": prediction.text,
        "boxes": [[box.x0, box.y0, box.x1, box.y1] for box in prediction.boxes],
        "points": [[point.x, point.y] for point in prediction.points],
        "malformed": list(prediction.malformed),
    }
