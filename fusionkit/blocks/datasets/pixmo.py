"""PixMo from local files: captions, points, counts and questions (arXiv 2409.17146).

`root` is a folder with `PART.jsonl` for every part asked for, one released row per line, and the pictures:

| part | fields read | becomes |
|---|---|---|
| `cap` | `caption` | a description of the picture |
| `cap_qa`, `ask` | `question`, `answer` | that question |
| `points` | `label`, `points`: `[{"x", "y"}]` in percent of the picture's sides | all points, left to right |
| `count` | `label`, `count` | how many there are |

The picture of a row is `image` (a path relative to `root`) if it has one, else the file `images/<image_sha256>` or
`images/<sha256 of image_url>`, with any picture ending or none. Links rot: with `leave_out_missing: true` rows whose
picture is not there are left out and counted in `left_out`; otherwise they are an error when read.
Other fields are not read. A sample is one row; parts follow each other in the order given.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fusionkit.blocks.datasets.rows import JsonLines, text_of
from fusionkit.blocks.datasets.specs import PixmoConfig
from fusionkit.errors import DataError
from fusionkit.geometry import Point, Size
from fusionkit.pictures import SUFFIXES, open_picture, picture_size
from fusionkit.plugin import BlockSite
from fusionkit.sample import Provenance, Sample, Turn


class Pixmo:
    """Map-style dataset over the rows of the parts; raises DataError naming file and line."""

    label_names: Mapping[str, tuple[str, ...]] = MappingProxyType({})

    def __init__(self, config: PixmoConfig, site: BlockSite | None = None) -> None:
        self.root = Path(config.root)
        if not self.root.is_dir():
            raise DataError(
                f"pixmo: no folder {self.root}; give its path as `root`, with "
                f"{', '.join(f'{part}.jsonl' for part in config.parts)} and images/ in it (fusionkit show pixmo)"
            )
        self._files = [JsonLines(self.root / f"{part}.jsonl", f"the part `{part}` of pixmo") for part in config.parts]
        self._starts = [0, *accumulate(len(rows) for rows in self._files)]
        self._kept: Sequence[int] = range(self._starts[-1])
        self._parts = config.parts
        if config.leave_out_missing:
            self._kept = array("Q", (number for number in self._kept if self._find(self._row(number)[2]) is not None))
        self.left_out = self._starts[-1] - len(self._kept)
        if not self._kept:
            raise DataError(
                f"pixmo: none of {self.left_out} pictures is in {self.root / 'images'}; download them first"
            )

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"pixmo has samples 0..{len(self) - 1}, got {index}")
        part, provenance, row = self._row(self._kept[index])
        where = str(provenance)
        path = self._find(row)
        if path is None:
            raise DataError(
                f"{where}: no picture for this row in {self.root / 'images'}; download it, or set leave_out_missing: true"
            )
        size = picture_size(path, where)
        return Sample(
            open_image=partial(open_picture, path, where),
            size=size,
            turns=(_TURNS[part](row, size, where),),
            provenance=provenance,
        )

    def _row(self, number: int) -> tuple[str, Provenance, dict[str, Any]]:
        """The part, place and content of a row, numbered through all parts."""
        file = bisect_right(self._starts, number) - 1
        rows, index = self._files[file], number - self._starts[file]
        return self._parts[file], Provenance(str(rows.path), rows.line(index)), rows.row(index)

    def _find(self, row: dict[str, Any]) -> Path | None:
        if isinstance(row.get("image"), str):
            path = self.root / row["image"]
            return path if path.is_file() else None
        names = [row["image_sha256"]] if isinstance(row.get("image_sha256"), str) else []
        if isinstance(row.get("image_url"), str):
            names.append(hashlib.sha256(row["image_url"].encode()).hexdigest())
        paths = (self.root / "images" / f"{name}{suffix}" for name in names for suffix in ("", *SUFFIXES))
        return next((path for path in paths if path.is_file()), None)


def _caption(row: dict[str, Any], size: Size, where: str) -> Turn:
    return Turn("Describe this picture.", (text_of(row, "caption", where),), "describe")


def _asked(row: dict[str, Any], size: Size, where: str) -> Turn:
    return Turn(text_of(row, "question", where), (text_of(row, "answer", where),))


def _count(row: dict[str, Any], size: Size, where: str) -> Turn:
    count = row.get("count")
    if type(count) is not int or count < 0:
        raise DataError(f"{where}: 'count' must be a whole number, got {count!r}")
    return Turn(f"How many {text_of(row, 'label', where)} are there?", (str(count),), "count")


def _points(row: dict[str, Any], size: Size, where: str) -> Turn:
    question = f"Point to {text_of(row, 'label', where)}."
    listed = row.get("points")
    if not isinstance(listed, list):
        raise DataError(f'{where}: \'points\' must be a list of {{"x": ..., "y": ...}}, got {listed!r}')
    points = sorted((_percent(value, size, where) for value in listed), key=lambda point: (point.x, point.y))
    return Turn(question, tuple(points) or ("There are none.",), "point")


def _percent(value: Any, size: Size, where: str) -> Point:
    numbers: list[Any] = [value.get("x"), value.get("y")] if isinstance(value, dict) else []
    # bool is an int in Python but no coordinate in JSON.
    if not numbers or not all(type(number) in (int, float) and 0 <= number <= 100 for number in numbers):
        raise DataError(f"{where}: a point must have x and y from 0 to 100 percent, got {value!r}")
    x, y = numbers
    return Point(x * size.width / 100, y * size.height / 100)


_TURNS = {"cap": _caption, "cap_qa": _asked, "ask": _asked, "count": _count, "points": _points}
