"""Answers that were made elsewhere: read, matched with the questions they answer, and scored. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionkit.blocks.datasets.rows import JsonLines, read_json, type_name
from fusionkit.data.convert_boxes import read_items
from fusionkit.data.questions import questions_of
from fusionkit.data.short_blocks import make_block
from fusionkit.errors import DataError, UsageError
from fusionkit.evaluate.scores import Answered, Scores
from fusionkit.geometry import Box, Point, Size
from fusionkit.sample import Prediction, Sample

METRICS = ("box_accuracy", "mean_iou", "pointing", "count_accuracy")
"""What is reported when no metric is named, as far as there are such questions."""

Row = dict[str, Any]


def read_rows(path: Path, what: str) -> list[tuple[str, Row]]:
    """The objects of a .jsonl file, or of a .json file with one or a list of them, each with its place; raises DataError."""
    if path.suffix == ".jsonl":
        lines = JsonLines(path, what)
        return [(lines.where(index), lines.row(index)) for index in range(len(lines))]
    content = read_json(path, f"{what} needs a file of answers")
    rows = content if isinstance(content, list) else [content]
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: expected a JSON object or a list of them, got {type_name(content)}")
    return [(f"{path}: object {number}", row) for number, row in enumerate(rows, start=1)]


def read_prediction(row: Row, size: Size | None, tokenizer: Any, where: str) -> Prediction:
    """A row as a prediction: its `text` (or `answer`) read by a box tokenizer, or without one its `boxes` and `points`.

    Raises DataError naming the place.
    """
    text = row.get("text", row.get("answer"))
    if text is not None and not isinstance(text, str):
        raise DataError(f"{where}: 'text' must be text, got {type_name(text)}")
    if tokenizer is not None:
        if text is None:
            raise DataError(f"{where}: no 'text' to read boxes from")
        if size is None:
            return Prediction(text)
        parsed = tokenizer.parse(text, size)
        return Prediction(text, parsed.boxes, parsed.points, parsed.malformed)
    if text is None and not row.keys() & {"boxes", "points"}:
        raise DataError(
            f"{where}: expected 'text', or 'boxes' and 'points'; it has {', '.join(map(repr, row)) or 'nothing'}"
        )
    malformed = row.get("malformed", [])
    if not isinstance(malformed, list):
        raise DataError(f"{where}: 'malformed' must be a list of texts, got {type_name(malformed)}")
    try:
        items = read_items({"boxes": [], **row})
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    return Prediction(
        text or "",
        tuple(item for item in items if isinstance(item, Box)),
        tuple(item for item in items if isinstance(item, Point)),
        tuple(map(str, malformed)),
    )


def match(rows: Sequence[tuple[str, Row]], samples: Iterable[Sample], tokenizer: Any, file: Path) -> list[Answered]:
    """Every question with its answer: by `id`, or in the order of the questions when no row has one.

    Raises DataError for a question without an answer, an answer without a question, and two answers to one.
    """
    questions = list(questions_of(samples))
    named = sum("id" in row for _, row in rows)
    if named not in (0, len(rows)):
        where = next(where for where, row in rows if "id" not in row)
        raise DataError(f"{where}: no 'id', but {named} of {len(rows)} answers have one; give all of them one, or none")
    if not named and len(rows) != len(questions):
        raise DataError(
            f"{file}: {len(rows)} answers to {len(questions)} questions; give each the 'id' of its question "
            "(fusionkit boxes questions writes them)"
        )
    answers = _by_id(rows) if named else {name: row for (name, _, _), row in zip(questions, rows, strict=True)}
    if missing := [name for name, _, _ in questions if name not in answers]:
        raise DataError(
            f"{file}: no answer to {len(missing)} of {len(questions)} questions, the first is {missing[0]}; "
            'an answer that says nothing is {"id": ..., "text": ""}'
        )
    if unknown := sorted(answers.keys() - {name for name, _, _ in questions}):
        raise DataError(
            f"{answers[unknown[0]][0]}: no question is called {unknown[0]!r} in this data; "
            "give the --data that the questions were written from"
        )
    for name, _, turn in questions:
        where, row = answers[name]
        if row.get("question", turn.question) != turn.question:
            raise DataError(
                f"{where}: answers {row['question']!r}, but {name} asks {turn.question!r} in this data; give the --data "
                "that the questions were written from"
            )
    return [
        (sample, turn, read_prediction(answers[name][1], sample.size, tokenizer, answers[name][0]))
        for name, sample, turn in questions
    ]


def _by_id(rows: Sequence[tuple[str, Row]]) -> dict[str, tuple[str, Row]]:
    found: dict[str, tuple[str, Row]] = {}
    for where, row in rows:
        name = row["id"]
        if not isinstance(name, str):
            raise DataError(f"{where}: 'id' must be text, got {type_name(name)}")
        if name in found:
            raise DataError(f"{where}: a second answer to {name!r}, the first is at {found[name][0]}")
        found[name] = where, row
    return found


@dataclass(frozen=True, slots=True)
class Scored:
    """Answers, and the metrics that scored them: `parts[""]` all of them, `parts[tag]` those with a tag."""

    name: str
    parts: dict[str, dict[str, Any]]
    answers: list[Answered]

    @property
    def scores(self) -> Scores:
        """The numbers, each under what the metric was called: its name, or its name with settings."""
        values = {
            part: {text: _computed(text, each) for text, each in found.items()} for part, found in self.parts.items()
        }
        return Scores(self.name, values.pop(""), self.answers, values, metrics=self.parts[""])

    def differences(self, other: Scored) -> list[dict[str, Any]]:
        """By how much these answers are better than others to the same questions, for metrics that can say so."""
        rows = []
        for part, metrics in self.parts.items():
            for text, metric in metrics.items():
                if not hasattr(metric, "difference") or not metric.compute()["count"]:
                    continue
                gap = metric.difference(other.parts[part][text])
                row: dict[str, Any] = {"data": self.name} | ({"questions": part} if len(self.parts) > 1 else {})
                found = {"difference": gap.value, "low": gap.low, "high": gap.high, "count": gap.count}
                rows.append({**row, "metric": text, **found})
        return rows


def score(answers: Sequence[Answered], metrics: Sequence[str], name: str) -> Scored:
    """All answers scored, and those of every tag of the questions (such as a split) where there are several.

    A metric is a name with settings, `pointing,within=mask`; without any, `METRICS` as far as they apply. Raises
    UsageError when no metric applies to any question.
    """
    whole = _fed(metrics or METRICS, answers)
    applied = [text for text, metric in whole.items() if metric.compute()["count"]]
    if not applied:
        kinds = ", ".join(sorted({turn.kind for _, turn, _ in answers}))
        raise UsageError(
            f"{' and '.join(metrics or METRICS)}: for none of these {len(answers)} questions (of kind {kinds}); "
            "name others with --metric (fusionkit list metrics)"
        )
    chosen = list(metrics or applied)
    tags = sorted({tag for _, turn, _ in answers for tag in turn.tags})
    parts = {tag: _fed(chosen, [item for item in answers if tag in item[1].tags]) for tag in tags if len(tags) > 1}
    return Scored(name, {"": {text: whole[text] for text in chosen}, **parts}, list(answers))


def worst_first(answers: Iterable[Answered], metric: str | None) -> list[tuple[float, Answered]]:
    """Answers with their own score by one metric, lowest first; what it does not score is left out.

    Without a metric: `mean_iou` for boxes, `pointing` for points. Raises UsageError when nothing is left.
    """
    found = []
    for sample, turn, prediction in answers:
        for text in ("mean_iou", "pointing") if metric is None else (metric,):
            values = _computed(text, _fed((text,), [(sample, turn, prediction)])[text])
            if values["count"]:
                found.append((values[text], (sample, turn, prediction)))
                break
    if not found:
        raise UsageError("no question with boxes or points that can be ranked; name a metric with --metric")
    return sorted(found, key=lambda item: item[0])


def _fed(metrics: Sequence[str], answers: Sequence[Answered]) -> dict[str, Any]:
    found = {text: make_block("metrics", text) for text in metrics}
    for sample, turn, prediction in answers:
        for metric in found.values():
            metric.update(prediction, turn, sample)
    return found


def _computed(text: str, metric: Any) -> dict[str, float]:
    """The numbers of a metric, the main one under the text that named it."""
    name = text.partition(",")[0].strip()
    return {text if key == name else key: value for key, value in metric.compute().items()}
