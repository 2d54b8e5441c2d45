"""Your own data, as one JSON object per line.

    {"image": "photos/cats.jpg",
     "conversations": [{"from": "human", "value": "Where are the cats?"},
                       {"from": "gpt", "value": "Here <box> and here <box>."},
                       {"from": "human", "value": "Point to the ball."},
                       {"from": "gpt", "value": "<point>"}],
     "boxes": [[12, 30, 210, 180], [240, 41, 388, 199]],
     "points": [[301.5, 220]]}

- `image`: a picture file, relative to the folder of the JSONL file (or absolute); with `fetch: true` also an http(s)
  address, fetched once into `images/` beside the file. Left out: questions without a picture.
- `conversations`: questions (`human`) and answers (`gpt`) in turn. Each question is asked on its own; a leading or
  trailing `<image>` in the first, as other tools write it, is taken off.
- `boxes`, `points`: `[x0, y0, x1, y1]` and `[x, y]` in pixels of the picture as it is seen (EXIF rotation applied),
  origin at the top left. Each `<box>` and `<point>` in an answer stands for the next entry; all must be used.
- `id`, `meta`: yours; not read.

An answer with boxes is of kind `box`, with points `point`, a whole number alone `count`, anything else `free`.
`fusionkit data check FILE` reports what is wrong, by line, and draws what is right.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fusionkit.blocks.datasets.conversations import turns_of
from fusionkit.blocks.datasets.picture_files import fetch, on_disk
from fusionkit.blocks.datasets.rows import JsonLines, text_of
from fusionkit.blocks.datasets.specs import JsonlConfig
from fusionkit.errors import DataError
from fusionkit.plugin import BlockSite
from fusionkit.sample import Provenance, Sample


class JsonlDataset:
    """Map-style dataset over the rows of a file.

    Raises DataError: for the file when it is made, for a row (naming file and line) when that row is read.
    """

    label_names: Mapping[str, tuple[str, ...]] = MappingProxyType({})

    def __init__(self, config: JsonlConfig, site: BlockSite | None = None) -> None:
        self.rows = JsonLines(config.path, "the dataset `jsonl`")
        self.fetch = config.fetch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.rows.path} has rows 0..{len(self) - 1}, got {index}")
        row, where = self.rows.row(index), self.rows.where(index)
        provenance = Provenance(str(self.rows.path), self.rows.line(index))
        if "image" not in row:
            if row.get("boxes") or row.get("points"):
                raise DataError(f"{where}: boxes or points without an 'image' they are in")
            return Sample(None, None, turns_of(row, None, where), provenance)
        picture = on_disk(self._picture(row, where), where)
        turns = turns_of(row, picture.size, where)
        return Sample(picture.open_image, picture.size, turns, provenance, path=picture.path)

    def _picture(self, row: dict[str, Any], where: str) -> Path:
        name, folder = text_of(row, "image", where), self.rows.path.parent
        if "://" not in name:
            return folder / name
        if not self.fetch:
            raise DataError(
                f"{where}: 'image' is the address {name}; download it and give the file's path, or set fetch: true"
            )
        return fetch(name, folder / "images", where)
