"""The encoder keeps its family's contract, with random weights."""

from __future__ import annotations

from fusionkit.testing import Check, parametrize_with_checks


@parametrize_with_checks("fusionkit-pyramid")
def test_conformance(check: Check) -> None:
    check()
