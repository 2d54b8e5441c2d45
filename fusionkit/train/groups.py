"""Which parameter learns how: learning rate by address, decay by role, one audit of it all before the first step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby

from torch import nn

from fusionkit.errors import UsageError
from fusionkit.ops.roles import DECAYING_ROLES, parameter_roles
from fusionkit.recipe.train_schema import AdamW, Muon
from fusionkit.train.addresses import check_addresses, rate_of


@dataclass(frozen=True, slots=True)
class Assigned:
    """How one parameter is trained."""

    name: str
    parameter: nn.Parameter
    role: str
    rule: str
    learning_rate: float
    weight_decay: float


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One line of the audit: parameters of an address that are treated alike."""

    address: str
    parameters: int
    trainable: bool
    rule: str
    learning_rate: float
    weight_decay: float


def assign(
    model: nn.Module, heads: nn.Module, optimizer: AdamW | Muon, rates: Mapping[str, float], new_rows: bool = False
) -> list[Assigned]:
    """How every trainable parameter of the model, and of the objectives' heads, is trained.

    Muon takes the parameters of role `matrix`; AdamW the rest, at the learning rate of their address. Objective
    heads learn at the highest rate named. `new_rows` says that embeddings train although no address asks for them.

    Raises UsageError when an address matches nothing, or a trainable parameter lies in no address.
    """
    check_addresses(model, rates, "train.learning_rates")
    assigned, lost = [], []
    head_rate = max(rates.values(), default=0.0)
    for prefix, module in (("", model), ("objectives.", heads)):
        roles = parameter_roles(module)
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            role = roles[name]
            decay = optimizer.weight_decay if role in DECAYING_ROLES else 0.0
            if isinstance(optimizer, Muon) and role == "matrix":
                assigned.append(Assigned(prefix + name, parameter, role, "muon", optimizer.learning_rate, decay))
                continue
            rate = head_rate if prefix else rate_of(name, rates)
            if rate is None and new_rows and role in ("embedding", "head"):
                rate = head_rate
            if rate is None:
                lost.append(name)
                continue
            assigned.append(Assigned(prefix + name, parameter, role, "adamw", rate, decay))
    if lost:
        raise UsageError(
            f"train.learning_rates: {len(lost)} trainable parameters lie in no address: {', '.join(lost[:3])} "
            f"(add `{lost[0].split('.')[0]}: 1e-4`)"
        )
    if not assigned:
        raise UsageError("train.stages: nothing is trainable; name addresses under `trainable`")
    return assigned


def audit(model: nn.Module, assigned: Iterable[Assigned]) -> list[AuditRow]:
    """The table shown before the first step: one row per block and treatment, frozen blocks included."""
    known = {item.name: item for item in assigned}
    rows: list[AuditRow] = []
    frozen = [(_block(name), parameter.numel()) for name, parameter in model.named_parameters() if name not in known]
    treated = sorted(
        known.values(), key=lambda item: (_block(item.name), item.rule, item.learning_rate, item.weight_decay)
    )
    for key, items in groupby(
        treated, lambda item: (_block(item.name), item.rule, item.learning_rate, item.weight_decay)
    ):
        address, rule, rate, decay = key
        rows.append(AuditRow(address, sum(item.parameter.numel() for item in items), True, rule, rate, decay))
    for address, sizes in groupby(sorted(frozen), lambda item: item[0]):
        rows.append(AuditRow(address, sum(size for _, size in sizes), False, "", 0.0, 0.0))
    return sorted(rows, key=lambda row: (row.address, not row.trainable))


def _block(name: str) -> str:
    """The address of the block a parameter belongs to."""
    parts = name.split(".")
    depth = {"streams": 3, "fusion": 2, "injectors": 2, "objectives": 2}.get(parts[0], 1)
    if parts[0] == "streams" and len(parts) > 3 and parts[2] == "steps":
        depth = 4
    return ".".join(parts[:depth])
