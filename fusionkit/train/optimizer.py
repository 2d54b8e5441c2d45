"""One optimizer made of AdamW and, where the recipe says so, Muon for the matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import torch

from fusionkit.recipe.train_schema import AdamW, Muon
from fusionkit.train.groups import Assigned


class Combined(torch.optim.Optimizer):
    """Several optimizers stepped as one; their parameter groups are shared, so schedulers reach all of them.

    `state_dict` holds one entry per member.
    """

    def __init__(self, members: Sequence[torch.optim.Optimizer]) -> None:
        self.members = list(members)
        super().__init__([group for member in self.members for group in member.param_groups], {})
        self._share()

    def _share(self) -> None:
        self.param_groups = [group for member in self.members for group in member.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = closure() if closure is not None else None
        for member in self.members:
            member.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        for member in self.members:
            member.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"members": [member.state_dict() for member in self.members]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for member, state in zip(self.members, state_dict["members"], strict=True):
            member.load_state_dict(state)
        self._share()


def make_optimizer(settings: AdamW | Muon, assigned: Sequence[Assigned]) -> torch.optim.Optimizer:
    """The optimizer of a stage: parameters grouped by rule, learning rate and decay, in a stable order."""
    members: list[torch.optim.Optimizer] = []
    adamw = _groups([item for item in assigned if item.rule == "adamw"])
    if adamw:
        members.append(torch.optim.AdamW(adamw, betas=settings.betas, eps=settings.eps))
    muon = _groups([item for item in assigned if item.rule == "muon"])
    if muon and isinstance(settings, Muon):
        members.append(torch.optim.Muon(muon, momentum=settings.momentum))
    return members[0] if len(members) == 1 else Combined(members)


def _groups(assigned: Sequence[Assigned]) -> list[dict[str, Any]]:
    """Skew has a group of its own: it is kept whole where others are divided, and such tensors do not mix."""

    def key(item: Assigned) -> tuple[float, float, bool]:
        return item.learning_rate, item.weight_decay, item.role == "skew"

    return [
        {"params": [item.parameter for item in items], "lr": rate, "weight_decay": decay}
        for (rate, decay, _), items in groupby(sorted(assigned, key=key), key)
    ]
