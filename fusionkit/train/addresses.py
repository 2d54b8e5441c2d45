"""Addresses name parts of the model: the same string as in `state_dict`. The longest prefix wins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from fusionkit.errors import UsageError


def lies_in(name: str, address: str) -> bool:
    """Whether the parameter or module `name` is `address` or inside it."""
    return name == address or name.startswith(f"{address}.")


def check_addresses(model: nn.Module, addresses: Iterable[str], where: str) -> None:
    """Raises UsageError naming every address that holds no parameter."""
    names = [name for name, _ in model.named_parameters()]
    unknown = [address for address in addresses if not any(lies_in(name, address) for name in names)]
    if unknown:
        top = sorted({name.split(".")[0] for name in names})
        raise UsageError(f"{where}: no parameter lies in {', '.join(unknown)} (the model has {', '.join(top)})")


def rate_of(name: str, rates: Mapping[str, float]) -> float | None:
    """The learning rate of a parameter: that of the longest address it lies in; None if it lies in none."""
    matches = [address for address in rates if lies_in(name, address)]
    return rates[max(matches, key=len)] if matches else None


def set_trainable(model: nn.Module, addresses: Iterable[str], where: str) -> None:
    """Let the parameters in `addresses` learn and freeze all others; quantised ones, which are no floats, stay frozen."""
    wanted = tuple(addresses)
    check_addresses(model, wanted, where)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.is_floating_point() and any(lies_in(name, address) for address in wanted))
