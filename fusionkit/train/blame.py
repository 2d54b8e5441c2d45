"""Whose fault it is that a loss is no number: weights that have diverged, or samples of the batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fusionkit.errors import FusionkitError
from fusionkit.sample import Sample

SHOWN = 4
DIVERGED = "so training has diverged (lower train.learning_rates)"


def named(samples: Sequence[Sample]) -> str:
    """Where samples come from; of many, the first."""
    more = f" and {len(samples) - SHOWN} more" if len(samples) > SHOWN else ""
    return ", ".join(str(sample.provenance) for sample in samples[:SHOWN]) + more


def blame(stage: nn.Module, collate: Callable[[Sequence[Sample]], Mapping[str, Any]], samples: Sequence[Sample]) -> str:
    """Why the losses of a batch are not finite, by the weights, and else by a pass for each sample alone.

    Every process must have the whole model: others do not take part in these passes.
    """
    if not all(bool(parameter.isfinite().all()) for parameter in stage.parameters()):
        return f"weights are not finite either, {DIVERGED}; the batch has {named(samples)}"
    guilty = [sample for sample in samples if not _finite_alone(stage, collate, sample)]
    if not guilty:
        return f"no sample gives this alone; the batch has {named(samples)}"
    if len(guilty) == len(samples) > 1:
        return f"every sample of the batch gives this, {DIVERGED}; the batch has {named(samples)}"
    return f"because of {named(guilty)}"


def _finite_alone(stage: nn.Module, collate: Callable[[Sequence[Sample]], Mapping[str, Any]], sample: Sample) -> bool:
    try:
        with torch.no_grad():
            losses = stage(collate([sample]))
    except FusionkitError:  # such as a loss that needs something this sample has not got
        return True
    return all(bool(loss.isfinite()) for loss in losses.values())
