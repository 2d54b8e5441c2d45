"""The few learned numbers a person reads: how far gates are open, and what each layer or input weighs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fusionkit.ops.roles import parameter_roles


@dataclass(frozen=True, slots=True)
class Gate:
    """One gate: what it lets through is tanh(value)."""

    address: str
    value: float

    @property
    def opening(self) -> float:
        return float(torch.tanh(torch.tensor(self.value, dtype=torch.float64)))


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of a sum, as its block says them; `names` are its inputs' where it knows them."""

    address: str
    values: tuple[float, ...]
    names: tuple[str, ...] = ()


def gates(model: nn.Module) -> Iterator[Gate]:
    """Parameters of the role `gate` that are one number; gates with a number per channel are scales, not gates."""
    roles = parameter_roles(model)
    for address, parameter in model.named_parameters():
        if roles.get(address) == "gate" and parameter.numel() == 1 and _is_whole(parameter):
            yield Gate(address, float(parameter.detach()))


def weights(model: nn.Module) -> Iterator[Weights]:
    """Blocks that sum with learned weights and say them in `weights()`."""
    for address, module in model.named_modules():
        said = getattr(module, "weights", None)
        own = getattr(module, "parameter_roles", {})
        if not callable(said) or "logits" not in own.values() or not _whole(module):
            continue
        with torch.no_grad():
            values = torch.as_tensor(said()).detach().double().flatten().tolist()
        names = getattr(module, "names", ())
        yield Weights(address, tuple(values), tuple(names) if len(names) == len(values) else ())


def _whole(module: nn.Module) -> bool:
    return all(_is_whole(parameter) for parameter in module.parameters(recurse=False))


def _is_whole(parameter: Tensor) -> bool:
    """Not a shard of something larger: a sharded number cannot be read by one process alone."""
    return type(parameter.data) is Tensor


def learned_numbers(model: nn.Module) -> dict[str, float | list[float]]:
    """All of them by address, for a training log: a number for a gate, a list for weights."""
    found: dict[str, float | list[float]] = {gate.address: gate.value for gate in gates(model)}
    return found | {each.address: list(each.values) for each in weights(model)}
