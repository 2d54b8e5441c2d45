"""What `fusionkit evaluate -o` leaves behind: numbers, every answer, and a page to look at."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusionkit.data.questions import question_id
from fusionkit.errors import DataError
from fusionkit.evaluate.draw import annotate, describe
from fusionkit.evaluate.page import Picture, Section, page
from fusionkit.evaluate.scores import Answered, Scores, worst_and_best
from fusionkit.evaluate.tables import cell, columns_of, write_tables
from fusionkit.sample import Prediction, Sample, Turn

SHOWN = 4
_KNOWN = ("low", "high", "count", "malformed")


def as_rows(results: Sequence[Scores]) -> list[dict[str, Any]]:
    """One row per entry and metric, and per tag of its questions: `value` with its 95 % interval, `count` of answers,
    share of `malformed` ones.

    The interval is the metric's own; a metric that gives none has none here. A row `without` a stream also has the
    `change` from the whole model, with its interval over the same questions.
    """
    rows = []
    for scores in results:
        for part, values in {"": scores.values, **scores.parts}.items():
            for metric, found in values.items():
                row: dict[str, Any] = {"data": scores.name}
                row |= {"questions": part} if scores.parts else {}
                row |= {"without": scores.without} if any(each.without for each in results) else {}
                row |= {"metric": metric, "value": found.get(metric)}
                row |= {key: found.get(key) for key in _KNOWN} | {"count": int(found["count"])}
                if not part and metric in scores.changes:
                    row["change"], row["change_low"], row["change_high"] = scores.changes[metric]
                rows.append(row | {key: value for key, value in found.items() if key not in (metric, *_KNOWN)})
    return rows


def write_report(folder: str | Path, title: str, results: Sequence[Scores], facts: Mapping[str, Any]) -> Path:
    """Write `scores.json` (with `facts`), `.csv`, `.md` and `.tex`, `answers.jsonl` and `report.html`; returns the page.

    Raises DataError when the folder cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scores.json").write_text(
            json.dumps({**facts, "scores": as_rows(results)}, indent=2) + "\n", encoding="utf-8"
        )
        with (folder / "answers.jsonl").open("w", encoding="utf-8") as file:
            for scores in results:
                file.writelines(json.dumps(_answer(scores, *item)) + "\n" for item in scores.answers)
        rows = as_rows(results)
        write_tables(folder, "scores", rows)
        shown = [{column: cell(row.get(column)) for column in columns_of(rows)} for row in rows]
        sections = [Section("Scores", "Low and high are the ends of the 95 % interval.", table=shown)]
        for scores in results:
            title_of = f"{scores.name} without {scores.without}" if scores.without else scores.name
            for kind, items in zip(("worst", "best"), worst_and_best(scores.answers, SHOWN), strict=True):
                if items:
                    sections.append(Section(f"{title_of}: {kind} boxes", pictures=[_draw(item) for item in items]))
        report = folder / "report.html"
        report.write_text(
            page(title, " · ".join(f"{key}: {cell(value)}" for key, value in facts.items()), sections), encoding="utf-8"
        )
    except OSError as error:
        raise DataError(f"{folder}: cannot write the report: {error.strerror or error}") from error
    return report


def _draw(item: Answered) -> Picture:
    sample, turn, prediction = item
    if sample.open_image is None:
        raise DataError(f"{sample.provenance}: no picture to draw")
    return Picture(
        annotate(sample.open_image(), turn.question, prediction, turn), f"{turn.question} {describe(prediction)}"
    )


def _answer(scores: Scores, sample: Sample, turn: Turn, prediction: Prediction) -> dict[str, Any]:
    """One answer with its truth, and its score by every metric that says how it scores one."""
    each = {
        name: metric.score(prediction, turn, sample)
        for name, metric in scores.metrics.items()
        if hasattr(metric, "score") and metric.applies(turn)
    }
    return {
        "data": scores.name,
        **({"without": scores.without} if scores.without else {}),
        "id": question_id(sample, turn),
        "source": str(sample.provenance),
        "question": turn.question,
        "kind": turn.kind,
        "truth": {
            "text": turn.text,
            "boxes": [[box.x0, box.y0, box.x1, box.y1] for box in turn.boxes],
            "points": [[point.x, point.y] for point in turn.points],
        },
        "answer": prediction.text,
        "boxes": [[box.x0, box.y0, box.x1, box.y1] for box in prediction.boxes],
        "points": [[point.x, point.y] for point in prediction.points],
        "malformed": list(prediction.malformed),
        **({"scores": each} if each else {}),
        **log_probabilities(prediction),
    }


def log_probabilities(prediction: Prediction) -> dict[str, Any]:
    """log p of boxes and points, where it is known, as JSON has it beside them."""
    known = {"box_log_p": prediction.box_log_p, "point_log_p": prediction.point_log_p}
    return {name: list(values) for name, values in known.items() if values}
