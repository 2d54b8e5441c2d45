"""One encoder over any number of pictures, batch by batch, each picture's result on disk before the next is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fusionkit.analysis.outcome import Frame
from fusionkit.analysis.partial import Partial
from fusionkit.analysis.photos import Photo, Reader, batches
from fusionkit.analysis.subjects import Subject, weights_digest
from fusionkit.errors import UsageError

Work = Callable[[nn.Module, Tensor], Sequence[Mapping[str, Any]]]
"""(encoder, x_BCHW) -> one JSON-able mapping per picture."""

PARTIAL = "partial"
"""The folder inside the output folder."""


def run(
    name: str,
    subject: Subject,
    encoder: nn.Module,
    photos: Sequence[Photo],
    settings: Mapping[str, Any],
    work: Work,
    frame: Frame,
) -> Partial:
    """Do the work on every picture that has no result yet, and give the results.

    `settings` names what the numbers depend on besides the encoder. Raises DataError for a broken picture (what was
    done is kept) and UsageError when the output folder holds results of other settings.
    """
    whole = {
        "analysis": name,
        "encoder": subject.source,
        "config": subject.config,
        "code": subject.code,
        "weights": weights_digest(encoder),
        **settings,
    }
    partial = Partial(frame.output / PARTIAL / f"{name}-{subject.label}.jsonl", whole, fresh=frame.fresh)
    left = [photo for photo in photos if not partial.has(photo)]
    reader, done = Reader(subject.info), len(photos) - len(left)
    what = f"{name} {subject.label}"
    frame.progress(what, done, len(photos))
    for group in batches(left, frame.batch):
        pixels = reader.pixels([photo.open() for photo in group]).to(frame.device)
        for photo, values in zip(group, work(encoder, pixels), strict=True):
            partial.add(photo, values)
        done += len(group)
        frame.progress(what, done, len(photos))
    return partial


def parse_layers(text: str | None, subject: Subject) -> tuple[int, ...]:
    """Layers as `1,4,8-12` or `all`; by default all that end a block, 1 to the deepest that can be read.

    Raises UsageError for a layer that is not there.
    """
    if text is None or text == "all":
        return tuple(range(1, subject.kept + 1))
    layers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UsageError(f"--layers {text}: '{part.strip()}' is no layer; for example 1,4,8-12 or all")
        layers.update(range(int(first), int(last or first) + 1))
    if absent := sorted(layer for layer in layers if layer > subject.kept):
        raise UsageError(f"--layers {text}: {subject.label} has layers 0..{subject.kept}, not {absent[0]}")
    return tuple(sorted(layers))
