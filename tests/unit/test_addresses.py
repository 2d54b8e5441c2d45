"""Addresses: what lies in what, which rate wins, and errors for an address that holds nothing."""

from __future__ import annotations

import pytest
from torch import nn

from fusionkit.errors import UsageError
from fusionkit.train.addresses import check_addresses, lies_in, rate_of, set_trainable


def model() -> nn.Module:
    return nn.ModuleDict(
        {
            "streams": nn.ModuleDict({"a": nn.Linear(2, 2), "ab": nn.Linear(2, 2)}),
            "fusion": nn.ModuleDict({"mix": nn.Linear(2, 2)}),
        }
    )


@pytest.mark.parametrize(
    ("name", "address", "expected"),
    [
        ("streams.a.weight", "streams", True),
        ("streams.a.weight", "streams.a", True),
        ("streams.a.weight", "streams.a.weight", True),
        ("streams.ab.weight", "streams.a", False),
        ("streams.a", "streams.a.weight", False),
        ("streams.a.weight", "a", False),
    ],
)
def test_an_address_ends_at_a_dot(name: str, address: str, expected: bool) -> None:
    assert lies_in(name, address) is expected


def test_the_longest_address_wins_in_any_order() -> None:
    rates = {"streams": 1e-4, "streams.a.weight": 3e-4, "streams.a": 2e-4}
    for given in (rates, dict(reversed(rates.items()))):
        assert rate_of("streams.a.weight", given) == 3e-4
        assert rate_of("streams.a.bias", given) == 2e-4
        assert rate_of("streams.ab.bias", given) == 1e-4
        assert rate_of("fusion.mix.bias", given) is None


def test_an_address_that_holds_nothing_is_an_error_that_says_what_there_is() -> None:
    with pytest.raises(UsageError) as caught:
        check_addresses(model(), ["streams.a", "streams.b", "fuson"], "train.learning_rates")
    assert str(caught.value) == (
        "train.learning_rates: no parameter lies in streams.b, fuson (the model has fusion, streams)"
    )


def test_only_what_lies_in_the_addresses_learns() -> None:
    built = model().requires_grad_(True)
    set_trainable(built, ["streams.a", "fusion.mix.bias"], "train.stages.x.trainable")
    learning = {name for name, parameter in built.named_parameters() if parameter.requires_grad}
    assert learning == {"streams.a.weight", "streams.a.bias", "fusion.mix.bias"}
    set_trainable(built, ["fusion"], "train.stages.x.trainable")
    learning = {name for name, parameter in built.named_parameters() if parameter.requires_grad}
    assert learning == {"fusion.mix.weight", "fusion.mix.bias"}
