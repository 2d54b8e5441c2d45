"""The tower keeps the contract of encoders, at two shapes, with random weights."""

from __future__ import annotations

from fusionkit.testing import Check, parametrize_with_checks


@parametrize_with_checks("fusionkit-open-clip")
def test_conformance(check: Check) -> None:
    check()
