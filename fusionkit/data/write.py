"""Write samples to a folder as pictures and a JSONL file that `jsonl` reads back."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fusionkit.errors import DataError
from fusionkit.geometry import Box
from fusionkit.sample import Sample, Turn

FILE = "questions.jsonl"


def write_samples(samples: Iterable[Sample], folder: str | Path) -> Path:
    """Write each sample's picture as PNG and its turns as one line of `questions.jsonl`; returns that file.

    Raises DataError when the folder cannot be written.
    """
    folder = Path(folder)
    lines = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, sample in enumerate(samples):
            if sample.open_image is None:
                raise DataError(f"{sample.provenance}: no picture to write")
            name = f"{number:03d}.png"
            sample.open_image().save(folder / name)
            lines.append(json.dumps(as_row(name, sample.turns), ensure_ascii=False))
        (folder / FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{folder}: cannot write samples: {error.strerror or error}") from error
    return folder / FILE


def as_row(image: str, turns: Iterable[Turn]) -> dict[str, Any]:
    """One line of the JSONL format: `<box>` and `<point>` in an answer stand for the next entry of boxes or points."""
    conversations, boxes, points = [], [], []
    for turn in turns:
        answer = ""
        for segment in turn.answer:
            if isinstance(segment, str):
                answer += segment
            elif isinstance(segment, Box):
                answer += "<box>"
                boxes.append([segment.x0, segment.y0, segment.x1, segment.y1])
            else:
                answer += "<point>"
                points.append([segment.x, segment.y])
        conversations += [{"from": "human", "value": turn.question}, {"from": "gpt", "value": answer}]
    row: dict[str, Any] = {"image": image, "conversations": conversations}
    return row | ({"boxes": boxes} if boxes else {}) | ({"points": points} if points else {})
