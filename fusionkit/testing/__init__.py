"""The conformance kit: what every block of a family must do, as small named checks.

A plugin's whole test suite may be

    from fusionkit.testing import parametrize_with_checks

    @parametrize_with_checks("acme-vision")
    def test_conformance(check):
        check()

which gives one test for each check of each example of each block that the distribution brings. `checks_for(spec)`
lists the checks of a block that is not installed; `fusionkit.testing.fakes` makes small inputs, and
`fusionkit.testing.strategies` draws them for hypothesis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusionkit.testing.collect import Check, checks_for, collect_checks, parametrize_with_checks
    from fusionkit.testing.subjects import CheckFailed

__all__ = ["Check", "CheckFailed", "checks_for", "collect_checks", "parametrize_with_checks"]

_HOMES = {
    "Check": "collect",
    "CheckFailed": "subjects",
    "checks_for": "collect",
    "collect_checks": "collect",
    "parametrize_with_checks": "collect",
}


def __getattr__(name: str) -> Any:
    # On first use: the tools of this package that need no torch must start without it.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
