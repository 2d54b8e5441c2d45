"""From samples to a training batch; a sample that cannot be used is named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fusionkit.model.processing import FusionProcessor
from fusionkit.sample import Sample


class Collate:
    """Picklable `collate_fn`: pads rows and prepares every picture once."""

    def __init__(self, processor: FusionProcessor, turns_per_sample: int | None) -> None:
        self.processor = processor
        self.turns_per_sample = turns_per_sample

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        return self.processor.batch(samples, self.turns_per_sample)
