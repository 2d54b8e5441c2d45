"""Scores of boxes. Torch-free.

An answer's boxes are matched one to one with the true ones, highest IoU first. Its score is divided by the larger
of the two numbers, so boxes too many cost as much as boxes missing; an answer without a box scores 0. With
`boxes: first` only the first box of an answer is read, as in the released code and most of the literature.
"""

from __future__ import annotations

from abc import abstractmethod

from fusionkit.blocks.metrics.specs import BoxAccuracyConfig, MeanIouConfig
from fusionkit.blocks.metrics.tally import Tally, matched
from fusionkit.geometry import Box
from fusionkit.plugin import BlockSite
from fusionkit.sample import Prediction, Sample, Turn


class _Boxes(Tally):
    nothing = 0.0
    """What an answer without a box scores."""

    def __init__(self, config: BoxAccuracyConfig | MeanIouConfig, site: BlockSite | None = None) -> None:
        super().__init__(config, site)
        self.read = 1 if config.boxes == "first" else None

    def applies(self, turn: Turn) -> bool:
        return bool(turn.boxes)

    def score(self, prediction: Prediction, turn: Turn, sample: Sample) -> float:
        found, wanted = prediction.boxes[: self.read], turn.boxes
        if not found:
            return self.nothing
        return sum(self.credit(f.iou(w)) for f, w in matched(found, wanted, Box.iou)) / max(len(found), len(wanted))

    @abstractmethod
    def credit(self, iou: float) -> float:
        """What a matched box earns."""


class BoxAccuracy(_Boxes):
    """Share of boxes with IoU >= threshold (or above it)."""

    def __init__(self, config: BoxAccuracyConfig, site: BlockSite | None = None) -> None:
        super().__init__(config, site)
        self.threshold = config.threshold
        self.strictly = config.border == "missed"

    def credit(self, iou: float) -> float:
        return float(iou > self.threshold if self.strictly else iou >= self.threshold)


class MeanIou(_Boxes):
    """Mean IoU."""

    def __init__(self, config: MeanIouConfig, site: BlockSite | None = None) -> None:
        super().__init__(config, site)
        self.nothing = config.without_box

    def credit(self, iou: float) -> float:
        return iou
