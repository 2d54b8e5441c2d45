"""The connector keeps its family's contract."""

from __future__ import annotations

from fusionkit.testing import Check, parametrize_with_checks


@parametrize_with_checks("fusionkit-perceiver")
def test_conformance(check: Check) -> None:
    check()
