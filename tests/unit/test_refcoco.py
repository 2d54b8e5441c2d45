"""RefCOCO from local JSON files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError

from fusionkit.blocks.datasets.refcoco import Refcoco
from fusionkit.blocks.datasets.specs import RefcocoConfig
from fusionkit.errors import DataError
from fusionkit.geometry import Box, Size
from fusionkit.sample import Turn

REFS: list[dict[str, Any]] = [
    {"ref_id": 0, "ann_id": 7, "image_id": 1, "split": "val", "category_id": 1,
     "sentences": [{"sent": "left cat", "tokens": ["left", "cat"]}, {"sent": "the cat."}]},
    {"ref_id": 1, "ann_id": 8, "image_id": 2, "split": "train", "sentences": [{"sent": "dog"}]},
    {"ref_id": 2, "ann_id": 9, "image_id": 1, "split": "val", "sentences": [{"sent": "right cat"}]},
    {"ref_id": 3, "ann_id": 8, "image_id": 2, "split": "testA", "sentences": [{"sent": "big dog"}]},
]  # fmt: skip
INSTANCES = {
    "images": [{"id": 1, "file_name": "one.jpg"}, {"id": 2, "file_name": "two.jpg"}],
    "annotations": [
        {"id": 7, "bbox": [1, 2, 10, 20]},
        {"id": 8, "bbox": [0, 0, 5.5, 5]},
        {"id": 9, "bbox": [30, 2, 10, 20]},
    ],
}


def make(root: Path, refs: Any = REFS, instances: Any = INSTANCES) -> Path:
    (root / "images").mkdir(parents=True)
    for name in ("one.jpg", "two.jpg"):
        Image.new("RGB", (64, 48)).save(root / "images" / name)
    (root / "refs.json").write_text(json.dumps(refs))
    (root / "instances.json").write_text(json.dumps(instances))
    return root


def load(root: Path, **settings: Any) -> Refcoco:
    return Refcoco(RefcocoConfig(root=str(root), **settings))


def test_a_sample_is_a_picture_with_all_its_expressions(tmp_path: Path) -> None:
    dataset = load(make(tmp_path), split="val")
    assert len(dataset) == 1
    sample = dataset[0]
    assert sample.size == Size(64, 48)
    assert sample.turns == (
        Turn("Locate left cat.", (Box(1, 2, 11, 22),), "box"),
        Turn("Locate the cat.", (Box(1, 2, 11, 22),), "box"),
        Turn("Locate right cat.", (Box(30, 2, 40, 22),), "box"),
    )
    assert sample.open_image is not None
    assert sample.open_image().mode == "RGB"
    assert sample.provenance.source.endswith("refs.json")


def test_several_splits(tmp_path: Path) -> None:
    dataset = load(make(tmp_path), splits=("val", "testA"))
    assert [len(dataset[index].turns) for index in range(len(dataset))] == [3, 1]


def test_a_missing_root_says_what_it_should_hold(tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"refcoco: no folder .*nowhere; give its path as `root`, expected refs\.json, instances\.json and images/",
    ):
        load(tmp_path / "nowhere", split="val")


def test_pickles_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "refs(unc).p").write_bytes(b"cos\nsystem\n(S'echo'\ntR.")
    with pytest.raises(
        DataError, match=r"refs\(unc\)\.p: pickles are not read, they can run code; write it as refs\.json"
    ):
        load(tmp_path, split="val")


BROKEN: dict[str, tuple[Any, Any, str]] = {
    "no list": ({}, INSTANCES, r"refs\.json: expected a list of objects"),
    "no annotations": (REFS, {"images": []}, r"instances\.json: expected a list of objects under 'annotations'"),
    "no such image": ([REFS[0] | {"image_id": 5}], INSTANCES, r"refs\.json: entry 0: image_id 5 is not in .*instances\.json"),
    "no such box": ([REFS[0] | {"ann_id": 5}], INSTANCES, r"entry 0: ann_id 5 in .*: expected bbox \[x, y, width, height\], got None"),
    "empty box": ([REFS[0] | {"ann_id": 1}], INSTANCES | {"annotations": [{"id": 1, "bbox": [0, 0, 0, 5]}]}, r"bbox \[0, 0, 0, 5\] is empty"),
    "no sentences": ([REFS[0] | {"sentences": []}], INSTANCES, r"entry 0: 'sentences' must be a list"),
    "no sent": ([REFS[0] | {"sentences": [{"raw": "x"}]}], INSTANCES, r"entry 0: 'sent' must be text, got nothing"),
    "no split": ([{"ref_id": 1}], INSTANCES, r"entry 0: 'split' must be text, got nothing"),
    "other splits": (REFS[1:2], INSTANCES, r"no split val; refs\.json has train"),
}  # fmt: skip


@pytest.mark.parametrize(("refs", "instances", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_files_name_the_entry(tmp_path: Path, refs: Any, instances: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(make(tmp_path, refs, instances), split="val")


def test_broken_json(tmp_path: Path) -> None:
    (make(tmp_path) / "refs.json").write_text("[{]")
    with pytest.raises(DataError, match=r"refs\.json: not valid JSON at column 3"):
        load(tmp_path, split="val")
    (tmp_path / "refs.json").unlink()
    with pytest.raises(DataError, match=r"refs\.json: no such file; expected refs\.json, instances\.json and images/"):
        load(tmp_path, split="val")


def test_a_missing_picture_names_the_entry(tmp_path: Path) -> None:
    (make(tmp_path) / "images" / "one.jpg").unlink()
    with pytest.raises(DataError, match=r"refs\.json: entry 0: .*one\.jpg: no such picture"):
        load(tmp_path, split="val")[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give either `split: train` or `splits:"),
        ({"split": "val", "splits": ("val",)}, "give either"),
        ({"splits": ("val", "val")}, "splits are repeated"),
        ({"split": "dev"}, "Input should be 'train', 'val'"),
    ],
)
def test_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RefcocoConfig(**settings)
