"""Blocks that are no modules, timed on the CPU at what they do for one picture, one answer or one sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusionkit import registry
from fusionkit.bench.case import Case
from fusionkit.bench.peers.peer import UnsuitableError
from fusionkit.errors import DataError, ShapeError, UsageError
from fusionkit.geometry import Box, Point, Size
from fusionkit.plugin import BlockSite, EncoderInfo
from fusionkit.sample import Prediction, Provenance, Sample, SceneObject, Turn

PICTURE = Size(1024, 768)
BOXES = tuple(Box(20.0 + 100 * i, 30.0, 90.0 + 100 * i, 400.0 + 20 * i, "thing") for i in range(8))
DEPTH, SIDE, PATCH = 24, 48, 8

Host = Callable[[], object]


@dataclass
class HostWork:
    """A call in plain Python, with the two methods of `Work` that a timer needs."""

    run: Host

    def prepare(self) -> None:
        """Nothing is kept between calls."""

    def call(self) -> object:
        return self.run()


def host_work(case: Case, device: str) -> HostWork:
    """What is timed of a block; called once here, so that what cannot run says so.

    Raises UnsuitableError on a GPU, and for blocks that need files or facts that are not here.
    """
    if device != "cpu":
        raise UnsuitableError(f"{case.spec.family} run on the CPU; use --device cpu")
    try:
        work = HostWork(_CALLS[case.spec.family](case))
        work.call()
    except (DataError, ShapeError, UsageError) as error:
        raise UnsuitableError(f"cannot run by itself: {error}") from error
    return work


def _make(case: Case) -> Any:
    return registry.factory(case.spec)(case.config, case.site)


def _info(side: int = SIDE, patch: int = PATCH) -> EncoderInfo:
    half = (0.5, 0.5, 0.5)
    return EncoderInfo(DEPTH, 64, (patch, patch), (side, side), 0, half, half, "none", _free, _free, "made up")


def _free(*_: Any) -> int:
    return 0


def _selector(case: Case) -> Host:
    """Choosing the layers of an encoder of 24 blocks."""
    selector = registry.factory(case.spec)(case.config, BlockSite(address=case.name, info=_info()))
    return lambda: selector.layers(_info())


def _box_tokenizer(case: Case) -> Host:
    """Writing a box and reading it back, eight times."""
    tokenizer = _make(case)

    def run() -> object:
        return [tokenizer.parse(tokenizer.encode(box, PICTURE), PICTURE) for box in BOXES]

    return run


def _cropper(case: Case) -> Host:
    """Cutting a picture of 1024x768 for one stream; without decoding it."""
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (PICTURE.height, PICTURE.width, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    info = _info(getattr(case.config, "size", None) or SIDE, getattr(case.config, "patch", None) or PATCH)
    cropper = _make(case)
    return lambda: cropper.split(picture, {"main": info})


def _dataset(case: Case) -> Host:
    """Reading one sample and its picture."""
    data = _make(case)
    count = min(16, len(data))
    turn = iter(range(10**9))

    def run() -> object:
        sample = data[next(turn) % count]
        return sample if sample.open_image is None else sample.open_image()

    return run


def _metric(case: Case) -> Host:
    """Counting the answers to one question of every kind, and the scores."""
    box = BOXES[0]
    point = Point(50.0, 60.0, "thing")
    turns = (
        Turn("Where is the thing?", (box,), "box"),
        Turn("Point to the thing.", (point,), "point"),
        Turn("How many things?", ("3",), "count"),
        Turn("Describe the picture.", ("a thing on a ground",), "describe"),
        Turn("What is it?", ("a thing",), "free"),
    )
    sample = Sample(None, PICTURE, turns, Provenance("bench"), (SceneObject(box, {"shape": "thing"}),))

    def run() -> object:
        metric = _make(case)
        for turn in turns:
            metric.update(Prediction(turn.text, turn.boxes, turn.points), turn, sample)
        return metric.compute()

    return run


_CALLS: dict[str, Callable[[Case], Host]] = {
    "selectors": _selector,
    "box_tokenizers": _box_tokenizer,
    "croppers": _cropper,
    "datasets": _dataset,
    "metrics": _metric,
}
