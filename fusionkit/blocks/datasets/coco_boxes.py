"""Boxes in the COCO format, asked for by category.

`annotations` is a released `instances_*.json`, or a file of your own in its form; read are `images` (`id`, `file_name`),
`annotations` (`image_id`, `category_id`, `bbox` as `[x, y, width, height]` in pixels, `iscrowd`) and `categories` (`id`,
`name`). Pictures lie in the folder `images`, a path beside the file or a whole one; with `fetch: true` those that are
not there are fetched once from their `coco_url`.

A sample is one picture with a question for each category in it, all its boxes the answer, left to right. Crowds are left
out, and pictures without anything else. What of a box lies outside the picture is cut off.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from fusionkit.blocks.datasets.picture_files import fetch, on_disk
from fusionkit.blocks.datasets.refcoco import coco_box, listed
from fusionkit.blocks.datasets.rows import read_json, text_of
from fusionkit.blocks.datasets.specs import CocoBoxesConfig
from fusionkit.errors import DataError
from fusionkit.geometry import Box, Size
from fusionkit.plugin import BlockSite
from fusionkit.sample import Provenance, Sample, SceneObject, Turn

QUESTION = "Locate every {category}."
_FORMAT = "expected a COCO file with images, annotations and categories (fusionkit show coco_boxes)"


class _Picture(NamedTuple):
    name: str
    address: str | None
    row: int
    boxes: dict[str, list[Box]]


class CocoBoxes:
    """Map-style dataset of pictures with boxes; raises DataError naming file and entry."""

    def __init__(self, config: CocoBoxesConfig, site: BlockSite | None = None) -> None:
        self.path = Path(config.annotations)
        self.folder = self.path.parent / config.images
        self.fetch = config.fetch
        content = read_json(self.path, _FORMAT)
        names = {
            entry.get("id"): text_of(entry, "name", f"{self.path}: categories[{row}]")
            for row, entry in enumerate(listed(content, "categories", self.path, _FORMAT))
        }
        wanted = set(names.values()) if config.categories is None else set(config.categories)
        if unknown := sorted(wanted - set(names.values())):
            raise DataError(f"{self.path}: no category {', '.join(unknown)} among its {len(names)}")
        pictures = self._read_pictures(content)
        for row, entry in enumerate(listed(content, "annotations", self.path, _FORMAT)):
            where = f"{self.path}: annotations[{row}]"
            picture, name = pictures.get(entry.get("image_id")), names.get(entry.get("category_id"))
            if picture is None or name is None:
                key, known = ("image_id", "images") if picture is None else ("category_id", "categories")
                raise DataError(f"{where}: {key} {entry.get(key)!r} is not in '{known}'")
            if name in wanted and not entry.get("iscrowd"):
                picture.boxes.setdefault(name, []).append(coco_box(entry.get("bbox"), where))
        self._pictures = [picture for picture in pictures.values() if picture.boxes]
        if not self._pictures:
            raise DataError(f"{self.path}: no picture has a box to ask for")
        self.label_names: Mapping[str, tuple[str, ...]] = MappingProxyType({"category": tuple(sorted(wanted))})

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"coco_boxes has samples 0..{len(self) - 1}, got {index}")
        picture = self._pictures[index]
        where = f"{self.path}: images[{picture.row}]"
        path = self.folder / picture.name
        if self.fetch and picture.address is not None and not path.is_file():
            if not path.resolve().is_relative_to(self.folder.resolve()):
                raise DataError(
                    f"{where}: file_name {picture.name!r} leads out of {self.folder}; it is not fetched there"
                )
            path = fetch(picture.address, path.parent, where, name=path.name)
        found = on_disk(path, where)
        boxes = {
            name: _from_the_left([_inside(box, name, found.size, where) for box in given])
            for name, given in picture.boxes.items()
        }
        return Sample(
            open_image=found.open_image,
            size=found.size,
            turns=tuple(Turn(QUESTION.format(category=name), answer, "box") for name, answer in boxes.items()),
            provenance=Provenance(str(self.path), picture.row),
            objects=tuple(SceneObject(box, {"category": name}) for name, answer in boxes.items() for box in answer),
            path=found.path,
        )

    def _read_pictures(self, content: Any) -> dict[Any, _Picture]:
        found = {}
        for row, entry in enumerate(listed(content, "images", self.path, _FORMAT)):
            name = text_of(entry, "file_name", f"{self.path}: images[{row}]")
            address = entry.get("coco_url")
            found[entry.get("id")] = _Picture(name, address if isinstance(address, str) else None, row, {})
        return found


def _from_the_left(boxes: list[Box]) -> tuple[Box, ...]:
    return tuple(sorted(boxes, key=lambda box: (box.x0, box.y0)))


def _inside(box: Box, label: str, size: Size, where: str) -> Box:
    """The part of a box inside its picture, with its label; raises DataError when there is none."""
    x0, x1 = (min(max(x, 0), size.width) for x in (box.x0, box.x1))
    y0, y1 = (min(max(y, 0), size.height) for y in (box.y0, box.y1))
    if x0 >= x1 or y0 >= y1:
        raise DataError(f"{where}: {box} lies outside the picture of {size} pixels")
    return Box(x0, y0, x1, y1, label)
