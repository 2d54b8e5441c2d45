"""Schedules: exact factors, warm-up from above zero, zero only after the last step."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fusionkit.recipe.train_schema import Constant, Cosine, FlatThenLinear, Linear
from fusionkit.train.schedule import factor, make_scheduler

ALL = (Cosine(), Linear(), Constant(), FlatThenLinear())


@pytest.mark.parametrize("schedule", [*ALL, *(s.model_copy(update={"warmup_steps": 7}) for s in ALL)], ids=repr)
def test_every_step_moves_the_weights_and_none_more_than_the_rate(schedule: Any) -> None:
    factors = [factor(schedule, step, 50) for step in range(50)]
    assert all(0 < value <= 1 for value in factors)
    warm = schedule.warmup_steps
    assert factors[:warm] == sorted(factors[:warm])
    assert factors[warm:] == sorted(factors[warm:], reverse=True)


def test_factors_are_what_the_schedules_say() -> None:
    assert [factor(Cosine(), step, 4) for step in range(5)] == pytest.approx(
        [0.5 * (1 + math.cos(math.pi * step / 4)) for step in range(5)]
    )
    assert [factor(Linear(), step, 4) for step in range(5)] == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert [factor(Constant(), step, 4) for step in range(5)] == [1, 1, 1, 1, 1]
    flat = FlatThenLinear(flat_fraction=0.5)
    assert [factor(flat, step, 8) for step in range(9)] == pytest.approx([1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0])


def test_warm_up_rises_evenly_and_the_rest_spans_what_is_left() -> None:
    assert [factor(Linear(warmup_steps=3), step, 7) for step in range(8)] == pytest.approx(
        [0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25, 0]
    )


def test_a_stage_shorter_than_its_warm_up_is_all_warm_up() -> None:
    assert [factor(Cosine(warmup_steps=10), step, 2) for step in range(2)] == pytest.approx([1 / 11, 2 / 11])


def test_the_scheduler_scales_every_group_by_the_same_factor() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.AdamW([{"params": [parameters[0]], "lr": 1.0}, {"params": [parameters[1]], "lr": 0.1}])
    scheduler = make_scheduler(optimizer, Linear(), 4)
    seen = []
    for _ in range(4):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    assert seen == [pytest.approx([value, value / 10]) for value in (1, 0.75, 0.5, 0.25)]
