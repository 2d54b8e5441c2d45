"""The blocks keep their families' contracts, with random weights: no package is needed, and seconds are enough."""

from __future__ import annotations

import importlib.util

import pytest

from fusionkit.testing import Check, parametrize_with_checks

EXAMPLES = {
    "encoders/real.dinov2_small": [{"image_size": 56, "weights": "random"}],
    "language_models/real.smollm2_135m": [{"weights": "random"}],
}
DEEP = (
    "the kit adds noise of 0.1 to every weight, five times what they are: twelve blocks of width 384 then amplify "
    "rounding beyond its limit; test_dinov2 holds the same limits with the real weights"
)
KNOWN_FAILURES = {
    f"encoders/real.dinov2_small[0]-{check}": DEEP
    for check in ("bf16_is_close", "autocast", "float32_is_close_to_float64")
}


@parametrize_with_checks(
    "fusionkit-real-small",
    families=["encoders", "language_models"],
    examples=EXAMPLES,
    known_failures=KNOWN_FAILURES,
)
def test_models(check: Check) -> None:
    check()


@pytest.mark.skipif(importlib.util.find_spec("skimage") is None, reason="scikit-image is not installed")
@parametrize_with_checks("fusionkit-real-small", families=["datasets"])
def test_photographs(check: Check) -> None:
    check()
