"""Precision, recall and F1 of points, and hits within pixels, by the matching of least total distance. Torch-free."""

from __future__ import annotations

import math
from typing import Self

from fusionkit.blocks.metrics.assignment import cheapest
from fusionkit.blocks.metrics.specs import PointingConfig
from fusionkit.blocks.metrics.tally import Tally
from fusionkit.errors import DataError
from fusionkit.geometry import Box, Point
from fusionkit.plugin import BlockSite
from fusionkit.sample import Prediction, Sample, Turn


class Pointing(Tally):
    """Mean over questions of precision, recall and F1; a matched point counts when it hits its true point.

    A hit is at most `tolerance` pixels from the true point, or inside the smallest annotated object around it.
    A question whose truth is no point at all scores 1 for an answer without points, else 0. Under the metric's name
    stands F1.
    """

    def __init__(self, config: PointingConfig, site: BlockSite | None = None) -> None:
        super().__init__(config, site)
        self.config = config
        self._precision = 0.0
        self._recall = 0.0

    def applies(self, turn: Turn) -> bool:
        return turn.kind == "point" or bool(turn.points)

    def score(self, prediction: Prediction, turn: Turn, sample: Sample) -> float:
        found, wanted = prediction.points, turn.points
        if not found or not wanted:
            right = float(not found and not wanted)
            self._precision += right
            self._recall += right
            return right
        pairs = cheapest([[math.hypot(f.x - w.x, f.y - w.y) for w in wanted] for f in found])
        hits = sum(self._hit(found[i], wanted[j], sample) for i, j in pairs)
        self._precision += hits / len(found)
        self._recall += hits / len(wanted)
        return 2 * hits / (len(found) + len(wanted))

    def _hit(self, found: Point, wanted: Point, sample: Sample) -> bool:
        if self.config.within == "pixels":
            return math.hypot(found.x - wanted.x, found.y - wanted.y) <= self.config.tolerance
        around: list[Box] = [thing.box for thing in sample.objects if thing.box.contains(wanted)]
        if not around:
            raise DataError(
                f"{sample.provenance}: no annotated object at the true point ({wanted.x:g}, {wanted.y:g}); "
                "pointing within: box needs objects, use within: pixels"
            )
        return min(around, key=lambda box: box.area).contains(found)

    def merge(self, other: Self) -> None:
        super().merge(other)
        self._precision += other._precision
        self._recall += other._recall

    def compute(self) -> dict[str, float]:
        values = super().compute()
        if not self._count:
            return values
        return values | {"precision": self._precision / self._count, "recall": self._recall / self._count}
