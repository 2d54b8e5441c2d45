"""The blocks keep their families' contracts, with random weights: no package is needed, and seconds are enough."""

from __future__ import annotations

import importlib.util

import pytest

from fusionkit.testing import Check, parametrize_with_checks

EXAMPLES = {
    "encoders/real.dinov2_small": [{"image_size": 56, "weights": "random"}],
    "language_models/real.smollm2_135m": [{"weights": "random"}],
}


@parametrize_with_checks(
    "fusionkit-real-small",
    families=["encoders", "language_models"],
    examples=EXAMPLES,
)
def test_models(check: Check) -> None:
    check()


@pytest.mark.skipif(importlib.util.find_spec("skimage") is None, reason="scikit-image is not installed")
@parametrize_with_checks("fusionkit-real-small", families=["datasets"])
def test_photographs(check: Check) -> None:
    check()
