"""Referring expressions from local files: RefCOCO, RefCOCO+ and RefCOCOg, as they are released.

`root` is a folder with

- the expressions: rows `{"ref_id", "ann_id", "image_id", "split", "sentences": [{"sent": "..."}, ...]}`, as the released
  pickle `refs(unc).p`, `refs(google).p` or `refs(umd).p` (read without running anything: plain containers only), or as
  `refs.json` (a list), `refs.jsonl` or `refs.parquet`. Of several, `refs` names the one to read
- `instances.json`: the released COCO file; read are `images` (`id`, `file_name`) and `annotations` (`id`, `bbox` as
  `[x, y, width, height]` in pixels). Rows that have their own `bbox` and `file_name`, as some copies do, need none: say
  `boxes: xywh` or `boxes: xyxy`
- `images/`: the COCO pictures under their `file_name`; `images` names another folder

A sample is one picture with all its expressions of the wanted splits, one question each, tagged with its split;
pictures come in the order of their first expression.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from fusionkit.blocks.datasets.picture_files import on_disk
from fusionkit.blocks.datasets.plain_pickle import read_plain_pickle
from fusionkit.blocks.datasets.rows import open_rows, read_json, text_of
from fusionkit.blocks.datasets.specs import RefcocoConfig
from fusionkit.errors import DataError
from fusionkit.geometry import Box
from fusionkit.plugin import BlockSite
from fusionkit.sample import Provenance, Sample, Turn

QUESTION = "Locate {expression}."
_FORMAT = (
    "expected refs.json or refs(...).p, instances.json and images/ (see the dataset `refcoco`: fusionkit show refcoco)"
)
_PATTERNS = ("refs*.json", "refs*.jsonl", "refs*.parquet", "refs*.p")
# The released rows name the picture of each expression apart: COCO_train2014_000000000042_3.jpg.
_NUMBERED = re.compile(r"^(COCO_[a-z]+[0-9]{4}_[0-9]{12})_[0-9]+(?=\.)")


class _Expression(NamedTuple):
    text: str
    box: Box
    row: int
    split: str


class Refcoco:
    """Map-style dataset of pictures with expressions; raises DataError naming file and entry."""

    label_names: Mapping[str, tuple[str, ...]] = MappingProxyType({})

    def __init__(self, config: RefcocoConfig, site: BlockSite | None = None) -> None:
        root = Path(config.root)
        if not root.is_dir():
            raise DataError(f"refcoco: no folder {root}; give its path as `root`, {_FORMAT}")
        self.refs = _refs_file(root, config.refs)
        self.images = root / config.images
        places = _Instances(root / "instances.json") if config.boxes == "instances" else _OwnBoxes(config.boxes)
        found: dict[str, list[_Expression]] = {}
        splits: set[str] = set()
        for row, ref in enumerate(_read_refs(self.refs)):
            where = self._where(row)
            split = text_of(ref, "split", where)
            splits.add(split)
            if split not in config.wanted:
                continue
            name, box = places.name(ref, where), places.box(ref, where)
            found.setdefault(name, []).extend(_Expression(text, box, row, split) for text in _sentences(ref, where))
        missing = [split for split in config.wanted if split not in splits]
        if missing:
            raise DataError(f"{root}: no split {', '.join(missing)}; {self.refs.name} has {', '.join(sorted(splits))}")
        self._pictures = list(found.items())

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"refcoco has samples 0..{len(self) - 1}, got {index}")
        name, expressions = self._pictures[index]
        picture = on_disk(self.images / name, self._where(expressions[0].row))
        return Sample(
            open_image=picture.open_image,
            size=picture.size,
            turns=tuple(
                Turn(QUESTION.format(expression=each.text), (each.box,), "box", (each.split,)) for each in expressions
            ),
            provenance=Provenance(str(self.refs), expressions[0].row),
            path=picture.path,
        )

    def _where(self, row: int) -> str:
        return f"{self.refs}: entry {row}"


class _Instances:
    """Names and boxes from the released COCO file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        content = read_json(path, _FORMAT)
        self.names = {entry.get("id"): entry.get("file_name") for entry in listed(content, "images", path, _FORMAT)}
        self.boxes = {entry.get("id"): entry.get("bbox") for entry in listed(content, "annotations", path, _FORMAT)}

    def name(self, ref: dict[str, Any], where: str) -> str:
        name = self.names.get(ref.get("image_id"))
        if not isinstance(name, str):
            raise DataError(f"{where}: image_id {ref.get('image_id')!r} is not in {self.path}")
        return name

    def box(self, ref: dict[str, Any], where: str) -> Box:
        return coco_box(self.boxes.get(ref.get("ann_id")), f"{where}: ann_id {ref.get('ann_id')!r} in {self.path}")


class _OwnBoxes:
    """Names and boxes that the rows have themselves."""

    def __init__(self, form: str) -> None:
        self.read: Callable[[Any, str], Box] = coco_box if form == "xywh" else _corners

    def name(self, ref: dict[str, Any], where: str) -> str:
        return _NUMBERED.sub(r"\1", text_of(ref, "file_name", where))

    def box(self, ref: dict[str, Any], where: str) -> Box:
        return self.read(ref.get("bbox"), where)


def listed(content: Any, key: str | None, path: Path, hint: str) -> list[dict[str, Any]]:
    """A list of objects: the whole content, or what is under a key of it; raises DataError."""
    entries = content.get(key) if key is not None and isinstance(content, dict) else content if key is None else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        place = f"a list of objects under '{key}'" if key else "a list of objects"
        raise DataError(f"{path}: expected {place}; {hint}")
    return entries


def coco_box(bbox: Any, where: str) -> Box:
    """The box of `[x, y, width, height]`; raises DataError."""
    x, y, width, height = _four(bbox, "[x, y, width, height]", where)
    if width <= 0 or height <= 0:
        raise DataError(f"{where}: bbox {bbox} is empty")
    return Box(x, y, x + width, y + height)


def _corners(bbox: Any, where: str) -> Box:
    x0, y0, x1, y1 = _four(bbox, "[x0, y0, x1, y1]", where)
    if x0 >= x1 or y0 >= y1:
        raise DataError(f"{where}: bbox {bbox}: expected x0 < x1 and y0 < y1 (`boxes: xywh` reads width and height)")
    return Box(x0, y0, x1, y1)


def _four(bbox: Any, form: str, where: str) -> list[float]:
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(type(value) in (int, float) for value in bbox):
        raise DataError(f"{where}: expected bbox {form}, got {bbox!r}")
    return bbox


def _refs_file(root: Path, name: str | None) -> Path:
    """The one file of expressions; raises DataError when there is none, or several and none is named."""
    if name is not None:
        return root / name
    found = sorted({path for pattern in _PATTERNS for path in root.glob(pattern)})
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DataError(
            f"{root}: several files of expressions: {names}; choose one, for example `refs: {found[0].name}`"
        )
    return found[0] if found else root / "refs.json"


def _read_refs(path: Path) -> list[dict[str, Any]]:
    if path.suffix in (".jsonl", ".parquet"):
        rows = open_rows(path, "the dataset `refcoco`")
        return [rows.row(index) for index in range(len(rows))]
    content = read_plain_pickle(path, _FORMAT) if path.suffix == ".p" else read_json(path, _FORMAT)
    return listed(content, None, path, _FORMAT)


def _sentences(ref: dict[str, Any], where: str) -> list[str]:
    sentences = ref.get("sentences")
    if not isinstance(sentences, list) or not sentences or not all(isinstance(each, dict) for each in sentences):
        raise DataError(f'{where}: \'sentences\' must be a list of {{"sent": "..."}}')
    return [text_of(sentence, "sent", where).rstrip(".") for sentence in sentences]
