"""Referring expressions from local files: RefCOCO, RefCOCO+ and RefCOCOg.

`root` is a folder with

- `refs.json`: a list of `{"ref_id", "ann_id", "image_id", "split", "sentences": [{"sent": "..."}, ...]}`; other keys
  are not read. This is the released `refs(unc).p` or `refs(umd).p` written as JSON: fusionkit reads no pickles, so
  convert once with a Python you trust the file to:
  `json.dump(pickle.load(open("refs(unc).p", "rb")), open("refs.json", "w"))`
- `instances.json`: the released COCO file; read are `images` (`id`, `file_name`) and `annotations` (`id`, `bbox` as
  `[x, y, width, height]` in pixels)
- `images/`: the COCO pictures under their `file_name`

A sample is one picture with all its expressions of the wanted splits, one question each; pictures come in the order
of their first expression.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from fusionkit.blocks.datasets.rows import read_json, text_of
from fusionkit.blocks.datasets.specs import RefcocoConfig
from fusionkit.errors import DataError
from fusionkit.geometry import Box
from fusionkit.pictures import open_picture, picture_size
from fusionkit.plugin import BlockSite
from fusionkit.sample import Provenance, Sample, Turn

QUESTION = "Locate {expression}."
_FORMAT = "expected refs.json, instances.json and images/ (see the dataset `refcoco`: fusionkit show refcoco)"


class _Expression(NamedTuple):
    text: str
    box: Box
    row: int


class Refcoco:
    """Map-style dataset of pictures with expressions; raises DataError naming file and entry."""

    label_names: Mapping[str, tuple[str, ...]] = MappingProxyType({})

    def __init__(self, config: RefcocoConfig, site: BlockSite | None = None) -> None:
        self.root = Path(config.root)
        if not self.root.is_dir():
            raise DataError(f"refcoco: no folder {self.root}; give its path as `root`, {_FORMAT}")
        pickled = sorted(self.root.glob("refs*.p"))
        if pickled and not (self.root / "refs.json").exists():
            raise DataError(
                f"{pickled[0]}: pickles are not read, they can run code; write it as refs.json once "
                "(fusionkit show refcoco has the line)"
            )
        refs = _entries(self.root / "refs.json", None)
        instances = self.root / "instances.json"
        names = {entry.get("id"): entry.get("file_name") for entry in _entries(instances, "images")}
        boxes = {entry.get("id"): entry.get("bbox") for entry in _entries(instances, "annotations")}
        found: dict[str, list[_Expression]] = {}
        splits: set[str] = set()
        for row, ref in enumerate(refs):
            where = f"{self.root / 'refs.json'}: entry {row}"
            split = text_of(ref, "split", where)
            splits.add(split)
            if split not in config.wanted:
                continue
            name = names.get(ref.get("image_id"))
            if not isinstance(name, str):
                raise DataError(f"{where}: image_id {ref.get('image_id')!r} is not in {instances}")
            box = _box(boxes.get(ref.get("ann_id")), f"{where}: ann_id {ref.get('ann_id')!r} in {instances}")
            found.setdefault(name, []).extend(_Expression(text, box, row) for text in _sentences(ref, where))
        missing = [split for split in config.wanted if split not in splits]
        if missing:
            raise DataError(f"{self.root}: no split {', '.join(missing)}; refs.json has {', '.join(sorted(splits))}")
        self._pictures = list(found.items())

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"refcoco has samples 0..{len(self) - 1}, got {index}")
        name, expressions = self._pictures[index]
        path, where = self.root / "images" / name, f"{self.root / 'refs.json'}: entry {expressions[0].row}"
        return Sample(
            open_image=partial(open_picture, path, where),
            size=picture_size(path, where),
            turns=tuple(Turn(QUESTION.format(expression=each.text), (each.box,), "box") for each in expressions),
            provenance=Provenance(str(self.root / "refs.json"), expressions[0].row),
        )


def _entries(path: Path, key: str | None) -> list[dict[str, Any]]:
    """A list of objects: the whole file, or under a key of it."""
    content = read_json(path, _FORMAT)
    listed = content.get(key) if key is not None and isinstance(content, dict) else content if key is None else None
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        place = f"a list of objects under '{key}'" if key else "a list of objects"
        raise DataError(f"{path}: expected {place}; {_FORMAT}")
    return listed


def _sentences(ref: dict[str, Any], where: str) -> list[str]:
    sentences = ref.get("sentences")
    if not isinstance(sentences, list) or not sentences or not all(isinstance(each, dict) for each in sentences):
        raise DataError(f'{where}: \'sentences\' must be a list of {{"sent": "..."}}')
    return [text_of(sentence, "sent", where).rstrip(".") for sentence in sentences]


def _box(bbox: Any, where: str) -> Box:
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(type(value) in (int, float) for value in bbox):
        raise DataError(f"{where}: expected bbox [x, y, width, height], got {bbox!r}")
    x, y, width, height = bbox
    if width <= 0 or height <= 0:
        raise DataError(f"{where}: bbox {bbox} is empty")
    return Box(x, y, x + width, y + height)
