"""What `fusionkit evaluate -o` leaves behind: numbers, every answer, and a page to look at."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusionkit.errors import DataError
from fusionkit.evaluate.draw import annotate, describe
from fusionkit.evaluate.page import Picture, Section, page
from fusionkit.evaluate.run import Answered, Scores, worst_and_best

SHOWN = 4


def as_rows(results: Sequence[Scores]) -> list[dict[str, Any]]:
    """One row per entry and metric: `value` with its 95 % interval, `count` of answers, share of `malformed` ones.

    The interval is the metric's own; a metric that gives none has none here.
    """
    rows = []
    for scores in results:
        for metric, found in scores.values.items():
            known = ("low", "high", "count", "malformed")
            row: dict[str, Any] = {"data": scores.name, "metric": metric, "value": found.get(metric)}
            row |= {key: found.get(key) for key in known} | {"count": int(found["count"])}
            rows.append(row | {key: value for key, value in found.items() if key not in (metric, *known)})
    return rows


def write_report(folder: str | Path, title: str, results: Sequence[Scores], facts: Mapping[str, Any]) -> Path:
    """Write `scores.json` (with `facts`), `answers.jsonl` and `report.html`; returns the page.

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
                file.writelines(json.dumps({"data": scores.name, **_answer(*item)}) + "\n" for item in scores.answers)
        sections = [
            Section(
                "Scores",
                "Low and high are the ends of the 95 % interval.",
                table=[{key: cell(value) for key, value in row.items()} for row in as_rows(results)],
            )
        ]
        for scores in results:
            worst, best = worst_and_best(scores.answers, SHOWN)
            sections.append(Section(f"{scores.name}: best boxes", pictures=[_draw(item) for item in best]))
            sections.append(Section(f"{scores.name}: worst boxes", pictures=[_draw(item) for item in worst]))
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


def cell(value: object) -> str:
    """A number of a table as a person reads it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def _answer(sample: Any, turn: Any, prediction: Any) -> dict[str, Any]:
    return {
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
    }
