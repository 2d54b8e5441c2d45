"""Scores of boxes. Torch-free.

An answer's boxes are matched one to one with the true ones, highest IoU first. Its score is divided by the larger
of the two numbers, so boxes too many cost as much as boxes missing; an answer without a box scores 0.
"""

from __future__ import annotations

from abc import abstractmethod

from fusionkit.blocks.metrics.specs import BoxAccuracyConfig
from fusionkit.blocks.metrics.tally import Tally, matched
from fusionkit.geometry import Box
from fusionkit.plugin import BlockSite
from fusionkit.sample import Prediction, Sample, Turn


class _Boxes(Tally):
    def applies(self, turn: Turn) -> bool:
        return bool(turn.boxes)

    def score(self, prediction: Prediction, turn: Turn, sample: Sample) -> float:
        found, wanted = prediction.boxes, turn.boxes
        return sum(self.credit(f.iou(w)) for f, w in matched(found, wanted, Box.iou)) / max(len(found), len(wanted))

    @abstractmethod
    def credit(self, iou: float) -> float:
        """What a matched box earns."""


class BoxAccuracy(_Boxes):
    """Share of boxes with IoU >= threshold."""

    def __init__(self, config: BoxAccuracyConfig, site: BlockSite | None = None) -> None:
        super().__init__(config, site)
        self.threshold = config.threshold

    def credit(self, iou: float) -> float:
        return float(iou >= self.threshold)


class MeanIou(_Boxes):
    """Mean IoU."""

    def credit(self, iou: float) -> float:
        return iou
