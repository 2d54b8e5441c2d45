"""Boxes in the COCO format."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fusionkit.blocks.datasets.coco_boxes import CocoBoxes
from fusionkit.blocks.datasets.specs import CocoBoxesConfig
from fusionkit.errors import DataError
from fusionkit.geometry import Box, Size
from fusionkit.sample import SceneObject, Turn

CONTENT: dict[str, Any] = {
    "info": {"year": 2026},
    "images": [{"id": 11, "file_name": "a.png"}, {"id": 12, "file_name": "b.png"}, {"id": 13, "file_name": "c.png"}],
    "annotations": [
        {"id": 1, "image_id": 12, "category_id": 2, "bbox": [30.5, 2, 50, 8], "iscrowd": 0, "area": 9},
        {"id": 2, "image_id": 12, "category_id": 2, "bbox": [1, 2, 3, 4]},
        {"id": 3, "image_id": 12, "category_id": 1, "bbox": [5, 5, 5, 5]},
        {"id": 4, "image_id": 13, "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 1},
        {"id": 5, "image_id": 11, "category_id": 1, "bbox": [0, 0, 64, 48]},
    ],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "traffic light"}],
}


def load(root: Path, content: Any = CONTENT, **settings: Any) -> CocoBoxes:
    (root / "images").mkdir(exist_ok=True)
    for name in "abc":
        Image.new("RGB", (64, 48)).save(root / "images" / f"{name}.png")
    (root / "instances.json").write_text(json.dumps(content))
    return CocoBoxes(CocoBoxesConfig(annotations=str(root / "instances.json"), **settings))


def test_a_picture_asks_for_each_of_its_categories(tmp_path: Path) -> None:
    dataset = load(tmp_path)
    assert len(dataset) == 2  # c.png has a crowd only
    sample = dataset[1]
    left, right = Box(1, 2, 4, 6, "traffic light"), Box(30.5, 2, 64, 10, "traffic light")  # cut at the edge
    assert sample.turns == (
        Turn("Locate every traffic light.", (left, right), "box"),
        Turn("Locate every cat.", (Box(5, 5, 10, 10, "cat"),), "box"),
    )
    assert sample.size == Size(64, 48)
    assert SceneObject(left, {"category": "traffic light"}) in sample.objects
    assert str(sample.provenance) == f"{tmp_path / 'instances.json'}:1"
    assert dict(dataset.label_names) == {"category": ("cat", "traffic light")}


def test_some_categories_only(tmp_path: Path) -> None:
    dataset = load(tmp_path, categories=("traffic light",))
    assert [len(dataset[index].turns) for index in range(len(dataset))] == [1]
    with pytest.raises(DataError, match=r"instances\.json: no category dog among its 2"):
        load(tmp_path, categories=("dog", "cat"))


def changed(key: str, row: int, **values: Any) -> dict[str, Any]:
    content = copy.deepcopy(CONTENT)
    content[key][row] |= values
    return content


BROKEN = {
    "no lists": ({}, r"expected a list of objects under 'categories'"),
    "no such picture": (changed("annotations", 0, image_id=99), r"annotations\[0\]: image_id 99 is not in 'images'"),
    "no such category": (changed("annotations", 1, category_id=9), r"annotations\[1\]: category_id 9 is not in 'categ"),
    "empty box": (changed("annotations", 2, bbox=[1, 2, 0, 4]), r"annotations\[2\]: bbox \[1, 2, 0, 4\] is empty"),
    "no box": (
        changed("annotations", 2, bbox=None),
        r"annotations\[2\]: expected bbox \[x, y, width, height\], got None",
    ),
    "no file name": (changed("images", 1, file_name=""), r"images\[1\]: 'file_name' must be text, got ''"),
    "no name": (changed("categories", 1, name=3), r"categories\[1\]: 'name' must be text, got a number"),
    "nothing to ask": (CONTENT | {"annotations": []}, "no picture has a box to ask for"),
}


@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_files_name_the_entry(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(DataError, match=rf"instances\.json: .*?{message}|instances\.json: {message}"):
        load(tmp_path, content)


def test_boxes_outside_their_picture_and_missing_pictures_are_named(tmp_path: Path) -> None:
    dataset = load(tmp_path, changed("annotations", 4, bbox=[70, 0, 5, 5]))
    with pytest.raises(
        DataError, match=r"instances\.json: images\[0\]: Box\(.*lies outside the picture of 64x48 pixels"
    ):
        dataset[0]
    (tmp_path / "images" / "b.png").unlink()
    with pytest.raises(DataError, match=r"instances\.json: images\[1\]: .*b\.png: no such picture"):
        dataset[1]
