"""Learning rate over a stage, as a factor of each group's own rate."""

from __future__ import annotations

import math
from typing import Any

import torch

from fusionkit.recipe.train_schema import FlatThenLinear


def factor(schedule: Any, step: int, steps: int) -> float:
    """The factor for optimizer step `step` (from 0) of `steps`; reaches 0 at the end, never before it."""
    if step < schedule.warmup_steps:
        return float((step + 1) / (schedule.warmup_steps + 1))
    done = (step - schedule.warmup_steps) / max(1, steps - schedule.warmup_steps)
    match schedule.type:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(1.0, float(done))))
        case "linear":
            return max(0.0, 1.0 - float(done))
        case "flat_then_linear":
            return _flat_then_linear(schedule, step, steps)
        case _:
            return 1.0


def _flat_then_linear(schedule: FlatThenLinear, step: int, steps: int) -> float:
    flat = schedule.flat_fraction * steps
    return 1.0 if step <= flat else max(0.0, (steps - step) / max(1e-9, steps - flat))


def make_scheduler(optimizer: torch.optim.Optimizer, schedule: Any, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """The scheduler of a stage."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(schedule, step, steps))
