"""Scores of points. Torch-free.

An answer's points are matched one to one with the true ones, nearest first; points too many cost as much as points
missing, and an answer without a point scores 0.
"""

from __future__ import annotations

import math

from fusionkit.blocks.metrics.specs import PointAccuracyConfig
from fusionkit.blocks.metrics.tally import Tally, matched
from fusionkit.errors import DataError
from fusionkit.geometry import Point
from fusionkit.plugin import BlockSite
from fusionkit.sample import Prediction, Sample, Turn


class PointAccuracy(Tally):
    """Share of points hit: near enough to the true point, or inside the box of the object it lies in."""

    def __init__(self, config: PointAccuracyConfig, site: BlockSite | None = None) -> None:
        super().__init__(config, site)
        self.config = config

    def applies(self, turn: Turn) -> bool:
        return bool(turn.points)

    def score(self, prediction: Prediction, turn: Turn, sample: Sample) -> float:
        found, wanted = prediction.points, turn.points
        pairs = matched(found, wanted, lambda a, b: -_distance(a, b))
        return sum(self._hit(f, w, sample) for f, w in pairs) / max(len(found), len(wanted))

    def _hit(self, found: Point, wanted: Point, sample: Sample) -> bool:
        if self.config.within == "box":
            around = [thing.box for thing in sample.objects if thing.box.contains(wanted)]
            if not around:
                raise DataError(
                    f"{sample.provenance}: no annotated object at the true point ({wanted.x:g}, {wanted.y:g}); "
                    "point_accuracy within: box needs objects, use within: fraction"
                )
            return min(around, key=lambda box: box.area).contains(found)
        reach = self.config.tolerance
        if self.config.within == "fraction":
            if sample.size is None:
                raise DataError(f"{sample.provenance}: no picture size to take a fraction of; use within: pixels")
            reach *= max(sample.size.width, sample.size.height)
        return _distance(found, wanted) <= reach


def _distance(a: Point, b: Point) -> float:
    return math.hypot(a.x - b.x, a.y - b.y)
