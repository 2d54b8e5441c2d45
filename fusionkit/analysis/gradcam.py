"""`fusionkit analyze gradcam`: where a fused model's answer comes from, per stream and layer. Equations in `gradients`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageDraw

from fusionkit.analysis.gradients import CONTRIBUTION, FUSED, SENSITIVITY, Explained, explain
from fusionkit.analysis.outcome import Frame, Outcome, Table
from fusionkit.analysis.overlay import Map, Picture, enlarge, fit, heat
from fusionkit.analysis.partial import Partial
from fusionkit.analysis.photos import Photo
from fusionkit.analysis.pictures import picture_outcome
from fusionkit.analysis.running import Running
from fusionkit.analysis.sheet import Row, Sheet
from fusionkit.analysis.stream import PARTIAL
from fusionkit.analysis.subjects import file_label, weights_digest
from fusionkit.errors import DataError, UsageError
from fusionkit.evaluate.draw import ANSWER, CASING, describe
from fusionkit.geometry import Size
from fusionkit.model.checkpoint import load_checkpoint
from fusionkit.pictures import picture_size
from fusionkit.sample import Provenance, Sample, Turn

KINDS = {
    CONTRIBUTION: "contribution to the answer (Grad-CAM per token)",
    SENSITIVITY: "sensitivity (size of the gradient)",
}
DIGITS = 5


def analyse(
    checkpoint: str, photos: Sequence[Photo], question: str, frame: Frame, *, max_new_tokens: int = 64, show: int = 12
) -> Outcome:
    """Ask one question of every picture, trace each answer back, and draw a sheet per picture.

    Raises UsageError for a checkpoint without a language model, DataError for an empty question.
    """
    if not question.strip():
        raise DataError('the question is empty; ask something, for example "point to the red circle"')
    model, processor = load_checkpoint(checkpoint)
    if model.language_model is None:
        raise UsageError(f"{checkpoint}: has no language model, so it gives no answer to trace back")
    model.to(frame.device)  # type: ignore[arg-type]
    settings = {
        "analysis": "gradcam",
        "checkpoint": checkpoint,
        "weights": weights_digest(model),
        "question": question,
        "max_new_tokens": max_new_tokens,
    }
    partial = Partial(frame.output / PARTIAL / f"gradcam-{file_label(checkpoint)}.jsonl", settings, fresh=frame.fresh)
    for done, photo in enumerate(photos, start=1):
        if not partial.has(photo):
            image = photo.open()
            sample = Sample(
                lambda image=image: image,  # type: ignore[misc]
                Size(*image.size),
                (Turn(question, ()),),
                Provenance(str(photo.path)),
            )
            partial.add(photo, _as_data(explain(model, processor, sample, max_new_tokens=max_new_tokens)))
        frame.progress(f"gradcam {Path(checkpoint).name}", done, len(photos))
    tables = [_table(photos, partial)]
    return picture_outcome(
        name="gradcam",
        title=f"{checkpoint}: {question}",
        explanation="Where the answer comes from, for every layer that a stream reads and for the fused tokens. "
        "Contribution: the token times the gradient of the answer's log-likelihood, where positive. Sensitivity: the "
        "size of that gradient, where a change would change the answer. Red: the answer.",
        photos=photos,
        sheets=_sheets(photos, partial, question),
        tables=tables,
        lines=[f"{checkpoint}: {question}"],
        frame=frame,
        show=show,
    )


def _as_data(found: Explained) -> dict[str, Any]:
    return {
        "answer": describe(found.prediction),
        "boxes": [[box.x0, box.y0, box.x1, box.y1] for box in found.prediction.boxes],
        "points": [[point.x, point.y] for point in found.prediction.points],
        "regions": [[box.x0, box.y0, box.x1, box.y1] for box in found.regions],
        "maps": {
            place: {
                "grid": [found.grids[place].height, found.grids[place].width],
                **{kind: _rounded(values.tolist()) for kind, values in kinds.items()},
            }
            for place, kinds in found.maps.items()
        },
    }


def _rounded(crops: Sequence[Sequence[float]]) -> list[list[float]]:
    """Enough digits to draw: relative to nothing else does a gradient have a size."""
    return [[float(f"{value:.{DIGITS}g}") for value in crop] for crop in crops]


def map_of_picture(values: Mapping[str, Any], place: str, kind: str, size: tuple[int, int], picture: Size) -> Map:
    """The map of all crops laid into the picture, at (width, height); where crops overlap, their mean."""
    width, height = size
    total, weight = np.zeros((height, width), np.float32), np.zeros((height, width), np.float32)
    shape = values["maps"][place]["grid"]
    for region, crop in zip(values["regions"], values["maps"][place][kind], strict=True):
        left, right = (round(edge / picture.width * width) for edge in (region[0], region[2]))
        top, bottom = (round(edge / picture.height * height) for edge in (region[1], region[3]))
        if right <= left or bottom <= top:
            continue
        laid = enlarge(np.reshape(np.asarray(crop, np.float32), shape), (right - left, bottom - top))
        inside = slice(max(top, 0), min(bottom, height)), slice(max(left, 0), min(right, width))
        total[inside] += laid[
            inside[0].start - top : inside[0].stop - top, inside[1].start - left : inside[1].stop - left
        ]
        weight[inside] += 1
    total /= np.maximum(weight, 1)
    return total


def _sheets(photos: Sequence[Photo], partial: Partial, question: str) -> Iterator[Sheet]:
    for photo, values in zip(photos, partial.values(photos), strict=True):
        image = photo.open()
        picture, size = fit(image), Size(*image.size)
        answered = _with_answer(picture, size, values)
        rows = []
        for stream, places in _by_stream(values).items():
            for kind, words in KINDS.items():
                tiles = [heat(picture, map_of_picture(values, place, kind, picture.size, size)) for place in places]
                names = ["answer", *(place.removeprefix(f"{stream} ") for place in places)]
                rows.append(Row(f"{stream}: {words}", [_layer_name(name) for name in names], [answered, *tiles]))
        yield Sheet(f"{photo.name}: {question} → {values['answer']}", rows)


def _by_stream(values: Mapping[str, Any]) -> dict[str, list[str]]:
    streams: dict[str, list[str]] = {}
    for place in values["maps"]:
        streams.setdefault(place.rpartition(" ")[0] or FUSED, []).append(place)
    return streams


def _layer_name(name: str) -> str:
    return f"layer {name}" if name.isdecimal() else "fused tokens" if name == FUSED else name


def _with_answer(picture: Picture, size: Size, values: Mapping[str, Any]) -> Picture:
    """The picture with the answered boxes and points."""
    drawn = picture.copy()
    draw = ImageDraw.Draw(drawn)
    scale = picture.width / size.width
    for x0, y0, x1, y1 in values["boxes"]:
        corners = (x0 * scale, y0 * scale, max(x1, x0) * scale, max(y1, y0) * scale)
        draw.rectangle(corners, outline=CASING, width=4)
        draw.rectangle(corners, outline=ANSWER, width=2)
    for x, y in values["points"]:
        for radius, colour in ((7, CASING), (5, ANSWER)):
            draw.ellipse((x * scale - radius, y * scale - radius, x * scale + radius, y * scale + radius), fill=colour)
    return drawn


def _table(photos: Sequence[Photo], partial: Partial) -> Table:
    """How much of each map lies in the answered boxes, beside how much of the picture they cover."""
    shares: dict[str, dict[str, Running]] = {}
    for photo, values in zip(photos, partial.values(photos), strict=True):
        if not values["boxes"]:
            continue
        with_size = picture_size(photo.path)
        for place in values["maps"]:
            found = shares.setdefault(place, {name: Running() for name in ("box area", *KINDS)})
            for kind in KINDS:
                laid = map_of_picture(values, place, kind, GRAIN, with_size)
                inside = _inside(values["boxes"], with_size)
                if laid.sum() > 0:
                    found[kind].add(float(laid[inside].sum() / laid.sum()))
            found["box area"].add(float(inside.mean()))
    rows: list[dict[str, object]] = [
        {
            "tokens": place,
            "pictures with a box": found["box area"].count,
            "share of the picture in the box": found["box area"].mean,
            **{f"share of {kind} in the box": found[kind].mean for kind in KINDS},
        }
        for place, found in shares.items()
    ]
    return Table("Maps and answered boxes", rows)


GRAIN = (96, 96)
"""Maps are compared with boxes on so many places."""


def _inside(boxes: Sequence[Sequence[float]], size: Size) -> Any:
    width, height = GRAIN
    x, y = (np.arange(width) + 0.5) / width * size.width, (np.arange(height) + 0.5) / height * size.height
    mask = np.zeros((height, width), bool)
    for x0, y0, x1, y1 in boxes:
        mask |= ((y >= y0) & (y < y1))[:, None] & ((x >= x0) & (x < x1))[None]
    return mask
