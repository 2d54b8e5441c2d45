"""PixMo from local files: captions, points, counts, questions and documents (arXiv 2409.17146).

`root` is a folder with, for every part asked for, `PART.jsonl`, `PART.parquet` or a folder `PART/` of parquet files, the
released rows in them; and the pictures. With `split: train` only files `PART/train-*.parquet` are read.

| part | fields read | becomes |
|---|---|---|
| `cap` | `caption` | a description of the picture |
| `cap_qa`, `ask` | `question`, `answer` | that question |
| `points` | `label`, `points`: `[{"x", "y"}]` in percent of the picture's sides | all points, left to right |
| `points_eval` | the same, and `masks`: rows of truth values for every point | the same, with objects for `within: mask` |
| `count` | `label`, `count` | how many there are |
| `docs` | `questions`: `[{"question", "answer"}]`, or both as lists | those questions |

The picture of a row is `image` if it has one (a path relative to `root`, or the bytes themselves in parquet), else the
file `images/<image_sha256>` or `images/<sha256 of image_url>`, with any picture ending or none. With `fetch: true` what
is not there is fetched once from `image_url`. Links rot: with `leave_out_missing: true` rows whose picture cannot be had
are left out and counted in `left_out`; otherwise they are an error when read.
Other fields are not read. A sample is one row; parts follow each other in the order given.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fusionkit.blocks.datasets.picture_files import Picture, fetch, in_row, kept, kept_name, on_disk
from fusionkit.blocks.datasets.pixmo_rows import objects_of, turns_of
from fusionkit.blocks.datasets.rows import Rows, open_rows
from fusionkit.blocks.datasets.specs import PixmoConfig
from fusionkit.errors import DataError
from fusionkit.plugin import BlockSite
from fusionkit.sample import Provenance, Sample

FETCHED_AT_ONCE = 8
"""Pictures asked for at a time."""
ROWS_AT_ONCE = 256
"""Rows held in memory while their pictures are looked for."""


class Pixmo:
    """Map-style dataset over the rows of the parts; raises DataError naming file and row."""

    label_names: Mapping[str, tuple[str, ...]] = MappingProxyType({})

    def __init__(self, config: PixmoConfig, site: BlockSite | None = None) -> None:
        self.root = Path(config.root)
        if not self.root.is_dir():
            raise DataError(
                f"pixmo: no folder {self.root}; give its path as `root`, with "
                f"{', '.join(f'{part}.jsonl' for part in config.parts)} and images/ in it (fusionkit show pixmo)"
            )
        found = [(part, path) for part in config.parts for path in _files(self.root, part, config.split)]
        self._parts = [part for part, _ in found]
        self._files = [open_rows(path, f"the part `{part}` of pixmo") for part, path in found]
        self._starts = [0, *accumulate(len(rows) for rows in self._files)]
        self._fetch = config.fetch
        self._kept: Sequence[int] = range(self._starts[-1])
        if config.leave_out_missing:
            self._kept = array("Q", self._present())
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
        part, rows, number = self._place(self._kept[index])
        row, where = rows.row(number), rows.where(number)
        picture = in_row(rows, number) if isinstance(row.get("image"), dict) else self._picture(row, where)
        return Sample(
            open_image=picture.open_image,
            size=picture.size,
            turns=turns_of(part, row, picture.size, where),
            provenance=Provenance(str(rows.path), rows.line(number)),
            objects=objects_of(part, row, picture.size, where),
            path=picture.path,
        )

    def _place(self, number: int) -> tuple[str, Rows, int]:
        """The part and the file of a row that is numbered through all files, and its index in that file."""
        file = bisect_right(self._starts, number) - 1
        return self._parts[file], self._files[file], number - self._starts[file]

    def _picture(self, row: dict[str, Any], where: str) -> Picture:
        path = self._find(row, where)
        if path is None:
            raise DataError(
                f"{where}: no picture for this row in {self.root / 'images'}; download it, or set fetch: true "
                "or leave_out_missing: true"
            )
        return on_disk(path, where)

    def _find(self, row: dict[str, Any], where: str) -> Path | None:
        """The picture file of a row, fetched if it may be; raises DataError when that fails."""
        if isinstance(row.get("image"), str):
            path = self.root / row["image"]
            return path if path.is_file() else None
        digest, address = (row[key] if isinstance(row.get(key), str) else None for key in ("image_sha256", "image_url"))
        names = ([digest] if digest else []) + ([kept_name(address)] if address else [])
        folder = self.root / "images"
        found = next((path for name in names if (path := kept(folder, name)) is not None), None)
        if found is None and self._fetch and address is not None:
            return fetch(address, folder, where, sha256=digest, name=digest)
        return found

    def _present(self) -> Iterator[int]:
        """The rows whose picture is there, or could be fetched now."""

        with ThreadPoolExecutor(FETCHED_AT_ONCE) as pool:
            for start in range(0, self._starts[-1], ROWS_AT_ONCE):
                numbers = range(start, min(start + ROWS_AT_ONCE, self._starts[-1]))
                places = [self._place(number) for number in numbers]
                rows = [(file.row(index), file.where(index)) for _, file, index in places]
                yield from (
                    number for number, there in zip(numbers, pool.map(self._is_there, rows), strict=True) if there
                )

    def _is_there(self, place: tuple[dict[str, Any], str]) -> bool:
        row, where = place
        if isinstance(row.get("image"), dict):
            return True
        try:
            return self._find(row, where) is not None
        except DataError:  # a dead link: what `leave_out_missing` is for
            return False


def _files(root: Path, part: str, split: str | None) -> list[Path]:
    """The files of a part; raises DataError when a folder of them has none of the split."""
    folder = root / part
    if folder.is_dir():
        pattern = "*.parquet" if split is None else f"{split}-*.parquet"
        found = sorted(folder.glob(pattern))
        if not found:
            raise DataError(f"{folder}: no {pattern} in this folder, which the part `{part}` of pixmo needs")
        return found
    if split is not None:
        raise DataError(
            f"{folder}: no such folder; `split: {split}` needs parquet files {part}/{split}-*.parquet in it"
        )
    return [path if (path := root / f"{part}.parquet").is_file() else root / f"{part}.jsonl"]
