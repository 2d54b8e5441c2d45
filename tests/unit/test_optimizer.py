"""The optimizer of a stage: Muon and AdamW side by side, saved and continued without a difference."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from fusionkit.recipe.train_schema import AdamW, Linear, Muon
from fusionkit.train.groups import Assigned
from fusionkit.train.optimizer import Combined, make_optimizer
from fusionkit.train.schedule import make_scheduler


def parts(seed: int = 0) -> list[Assigned]:
    generator = torch.Generator().manual_seed(seed)

    def parameter(*shape: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(*shape, generator=generator))

    return [
        Assigned("a.weight", parameter(6, 4), "matrix", "muon", 0.02, 0.01),
        Assigned("b.weight", parameter(4, 4), "matrix", "muon", 0.02, 0.01),
        Assigned("a.bias", parameter(6), "bias", "adamw", 1e-3, 0.0),
        Assigned("gate", parameter(1), "gate", "adamw", 1e-2, 0.0),
        Assigned("conv", parameter(2, 2, 3, 3), "conv", "adamw", 1e-3, 0.01),
    ]


def give_gradients(assigned: list[Assigned], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for item in assigned:
        item.parameter.grad = torch.randn(item.parameter.shape, generator=generator)


def values(assigned: list[Assigned]) -> list[torch.Tensor]:
    return [item.parameter.detach().clone() for item in assigned]


def test_each_member_does_what_it_does_alone() -> None:
    settings = Muon(learning_rate=0.02, momentum=0.9, weight_decay=0.01, betas=(0.8, 0.9), eps=1e-6)
    together, alone = parts(), parts()
    optimizer = make_optimizer(settings, together)
    assert isinstance(optimizer, Combined)
    muon = torch.optim.Muon([item.parameter for item in alone[:2]], lr=0.02, momentum=0.9, weight_decay=0.01)
    adamw = torch.optim.AdamW(
        [
            {"params": [item.parameter], "lr": item.learning_rate, "weight_decay": item.weight_decay}
            for item in alone[2:]
        ],
        betas=(0.8, 0.9),
        eps=1e-6,
    )
    for step in range(3):
        give_gradients(together, step)
        give_gradients(alone, step)
        optimizer.step()
        muon.step()
        adamw.step()
    for found, expected in zip(values(together), values(alone), strict=True):
        assert torch.equal(found, expected)


def test_groups_keep_rate_and_decay_apart() -> None:
    optimizer = make_optimizer(Muon(), parts())
    found = sorted((group["lr"], group["weight_decay"], len(group["params"])) for group in optimizer.param_groups)
    assert found == [(1e-3, 0.0, 1), (1e-3, 0.01, 1), (1e-2, 0.0, 1), (0.02, 0.01, 2)]


def test_without_matrices_it_is_plain_adamw() -> None:
    assigned = [item for item in parts() if item.rule == "adamw"]
    assert type(make_optimizer(AdamW(), assigned)) is torch.optim.AdamW
    assert type(make_optimizer(Muon(), assigned)) is torch.optim.AdamW


@pytest.mark.parametrize("scheduled", [False, True])
def test_saved_and_loaded_it_continues_bit_for_bit(scheduled: bool) -> None:
    def run(stop: int | None) -> list[torch.Tensor]:
        assigned = parts()
        optimizer = make_optimizer(Muon(), assigned)
        scheduler = make_scheduler(optimizer, Linear(warmup_steps=2), 8) if scheduled else None
        for step in range(6):
            if step == stop:
                file = io.BytesIO()
                torch.save([optimizer.state_dict(), scheduler and scheduler.state_dict()], file)
                file.seek(0)
                weights = values(assigned)
                assigned = parts(seed=1)
                for item, weight in zip(assigned, weights, strict=True):
                    item.parameter.data.copy_(weight)
                optimizer = make_optimizer(Muon(), assigned)
                scheduler = make_scheduler(optimizer, Linear(warmup_steps=2), 8) if scheduled else None
                state, schedule = torch.load(file)
                optimizer.load_state_dict(state)
                if scheduler is not None:
                    scheduler.load_state_dict(schedule)
            give_gradients(assigned, step)
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            optimizer.zero_grad()
        return values(assigned)

    for continued, uninterrupted in zip(run(3), run(None), strict=True):
        assert torch.equal(continued, uninterrupted)


def test_a_scheduler_reaches_the_groups_of_every_member_after_loading() -> None:
    optimizer = make_optimizer(Muon(), parts())
    optimizer.load_state_dict(optimizer.state_dict())
    assert isinstance(optimizer, Combined)
    for group in optimizer.param_groups:
        group["lr"] = 0.125
    assert [group["lr"] for member in optimizer.members for group in member.param_groups] == [0.125] * 4


def test_zero_grad_clears_every_parameter() -> None:
    assigned = parts()
    optimizer = make_optimizer(Muon(), assigned)
    give_gradients(assigned, 0)
    optimizer.zero_grad()
    assert all(item.parameter.grad is None for item in assigned)
