"""Precision, recall and F1 of points, and hits within pixels, by the matching of least total distance. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fusionkit.blocks.metrics.assignment import cheapest
from fusionkit.blocks.metrics.specs import PointingConfig
from fusionkit.blocks.metrics.tally import Tally
from fusionkit.errors import DataError
from fusionkit.geometry import Box, Mask, Point
from fusionkit.plugin import BlockSite
from fusionkit.sample import Prediction, Sample, Turn


class Pointing(Tally):
    """Mean over questions of precision, recall and F1; a matched point counts when it hits its true point.

    A hit is at most `tolerance` pixels from the true point, inside the smallest annotated object around it, or inside
    the mask of its object. A question whose truth is no point at all scores 1 for an answer without points, else 0.
    Under the metric's name stands F1.
    """

    def __init__(self, config: PointingConfig, site: BlockSite | None = None) -> None:
        super().__init__(config, site)
        self.config = config

    def applies(self, turn: Turn) -> bool:
        return turn.kind == "point" or bool(turn.points)

    def score(self, prediction: Prediction, turn: Turn, sample: Sample) -> Mapping[str, float]:
        found, wanted = prediction.points, turn.points
        masks = self._masks(turn, sample) if self.config.within == "mask" else ()
        if not found or not wanted:
            right = float(not found and not wanted)
            return {self.name: right, "precision": right, "recall": right}
        pairs = cheapest([[math.hypot(f.x - w.x, f.y - w.y) for w in wanted] for f in found])
        hits = sum(masks[j].contains(found[i]) if masks else self._hit(found[i], wanted[j], sample) for i, j in pairs)
        return {
            self.name: 2 * hits / (len(found) + len(wanted)),
            "precision": hits / len(found),
            "recall": hits / len(wanted),
        }

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

    def _masks(self, turn: Turn, sample: Sample) -> tuple[Mask, ...]:
        """The mask of each true point: object k of the sample belongs to point k."""
        masks = tuple(thing.mask for thing in sample.objects if thing.mask is not None)
        if len(masks) != len(turn.points):
            raise DataError(
                f"{sample.provenance}: {len(masks)} masks for {len(turn.points)} true points; pointing within: mask "
                "needs an object with a mask for each point, use within: pixels"
            )
        return masks
