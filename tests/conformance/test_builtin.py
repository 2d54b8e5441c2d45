"""Every built-in block keeps the contract of its family. Adding a block adds its tests."""

from __future__ import annotations

from pathlib import Path

from fusionkit.testing import Check, parametrize_with_checks

DATA = Path(__file__).parent / "data"

# Datasets of local files, on files small enough to be here.
EXAMPLES = {
    "datasets/coco_boxes": [{"annotations": str(DATA / "coco" / "instances.json")}],
    "datasets/hugging_face": [
        {
            "path": str(DATA / "hugging_face" / "rows" / "rows.jsonl"),
            "columns": {"image": "picture", "question": "question", "answer": "answer"},
        },
        {
            "path": str(DATA / "hugging_face" / "pictures"),
            "split": "train",
            "ask": "Locate {phrase}.",
            "columns": {"image": "image", "boxes": "objects.bbox"},
            "box_format": "xywh",
        },
    ],
    "datasets/jsonl": [{"path": str(DATA / "mine.jsonl")}],
    "datasets/llava": [{"path": str(DATA / "llava.json")}],
    "datasets/refcoco": [
        {"root": str(DATA / "refcoco"), "split": "train"},
        {"root": str(DATA / "refcoco"), "splits": ["val", "testA", "testB"]},
        {"root": str(DATA / "refcoco_pickle"), "split": "val"},
    ],
    "datasets/pixmo": [{"root": str(DATA / "pixmo")}, {"root": str(DATA / "pixmo"), "parts": ["points", "docs"]}],
}


@parametrize_with_checks("fusionkit", examples=EXAMPLES)
def test_conformance(check: Check) -> None:
    check()
