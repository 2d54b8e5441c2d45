"""From samples to a training batch; a sample that cannot be used is named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fusionkit.data.packing import Packing
from fusionkit.model.processing import FusionProcessor
from fusionkit.sample import Sample


class Collate:
    """Picklable `collate_fn`: pads or packs rows, prepares every picture once; with `double`, numbers are fp64."""

    def __init__(
        self,
        processor: FusionProcessor,
        turns_per_sample: int | None,
        *,
        double: bool = False,
        packing: Packing | None = None,
    ) -> None:
        self.processor = processor
        self.turns_per_sample = turns_per_sample
        self.double = double
        self.packing = packing

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        batch = self.processor.batch(samples, self.turns_per_sample)
        if self.packing is not None:
            batch = self.packing(batch)
        return {name: self._wide(value) for name, value in batch.items()} if self.double else batch

    @staticmethod
    def _wide(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
