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


@parametrize_with_checks("fusionkit", examples=EXAMPLES)
def test_conformance(check: Check) -> None:
    check()
