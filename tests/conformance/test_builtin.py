"""Every built-in block keeps the contract of its family. Adding a block adds its tests."""

from __future__ import annotations

from pathlib import Path

from fusionkit.testing import Check, parametrize_with_checks

DATA = Path(__file__).parent / "data"

# Datasets of local files, on files small enough to be here.
EXAMPLES = {
    "datasets/jsonl": [{"path": str(DATA / "mine.jsonl")}],
    "datasets/refcoco": [
        {"root": str(DATA / "refcoco"), "split": "train"},
        {"root": str(DATA / "refcoco"), "splits": ["val", "testA", "testB"]},
    ],
    "datasets/pixmo": [{"root": str(DATA / "pixmo")}, {"root": str(DATA / "pixmo"), "parts": ["points"]}],
}

HOOKS = "reads timm's blocks through hooks set for the call, which torch.compile does not trace"
KNOWN_FAILURES = {
    f"encoders/timm[{example}]-compiles_for_{purpose}": HOOKS
    for example in (0, 1)
    for purpose in ("training", "inference")
}


@parametrize_with_checks("fusionkit", examples=EXAMPLES, known_failures=KNOWN_FAILURES)
def test_conformance(check: Check) -> None:
    check()
