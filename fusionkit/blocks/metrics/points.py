"""Scores of points. Torch-free.

An answer's points are matched one to one with the true ones: nearest first, or by the least total distance. By default
points too many cost as much as points missing; an answer without a point scores 0.
"""

from __future__ import annotations

import math

from fusionkit.blocks.metrics.assignment import cheapest
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
        if not found:
            return 0.0
        if self.config.matching == "optimal":
            distances = [[_distance(f, w) for w in wanted] for f in found]
            pairs = [(found[i], wanted[j]) for i, j in cheapest(distances)]
        else:
            pairs = matched(found, wanted, lambda a, b: -_distance(a, b))
        parts = {"larger": max(len(found), len(wanted)), "truth": len(wanted), "answer": len(found)}
        return sum(self._hit(f, w, sample) for f, w in pairs) / parts[self.config.denominator]

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
        if self.config.within == "fraction" or self.config.frame is not None:
            if sample.size is None:
                raise DataError(
                    f"{sample.provenance}: no picture size to take a fraction of; use within: pixels without a frame"
                )
            reach *= max(sample.size.width, sample.size.height)
        if self.config.frame is not None:
            reach /= self.config.frame
        return _distance(found, wanted) <= reach


def _distance(a: Point, b: Point) -> float:
    return math.hypot(a.x - b.x, a.y - b.y)
