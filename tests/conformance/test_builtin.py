"""Every built-in block keeps the contract of its family. Adding a block adds its tests."""

from __future__ import annotations

from fusionkit.testing import Check, parametrize_with_checks


@parametrize_with_checks("fusionkit")
def test_conformance(check: Check) -> None:
    check()
