"""Any dataset that the library `datasets` reads, by naming its columns.

    data:
      - type: hugging_face
        path: data/vqa                # a folder, a file of rows, or a hub id with `split` (and `revision`)
        split: train
        columns: {image: image, question: question, answer: answer}

- `image`: a column of pictures, a list of pictures, or of file names, which are relative to the folder. A row without a
  picture is a question without one.
- `question` and `answer`: text, or lists of as many; an answer may be a whole number or a class, which is written by its
  name. `ask` is the question where no column holds it: `ask: "Locate {phrase}."`
- `conversations`: messages in turn instead, as from/value, role/content or user/assistant. A first message of the system
  is left out, and marks where the picture goes are taken off.
- `boxes`, `points`: one or several. Each `<box>` and `<point>` in an answer stands for the next; where no column holds
  the answer they are the answer. `box_format` and `units` say how they are written.

Rows are read where they lie, one at a time, and pictures when they are looked at.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fusionkit.blocks.datasets.conversations import turns_of
from fusionkit.blocks.datasets.hugging_face_row import Reader
from fusionkit.blocks.datasets.hugging_face_source import open_table
from fusionkit.blocks.datasets.picture_files import Picture, on_disk
from fusionkit.blocks.datasets.specs import HuggingFaceConfig
from fusionkit.errors import DataError
from fusionkit.pictures import open_picture, picture_size
from fusionkit.plugin import BlockSite
from fusionkit.sample import Provenance, Sample

if TYPE_CHECKING:
    from PIL.Image import Image


class HuggingFace:
    """Map-style dataset over the rows.

    Raises DataError: when it is made, for what cannot be opened and for columns that are not there; for a row, naming it
    by its number from 1, when that row is read.
    """

    label_names: Mapping[str, tuple[str, ...]] = MappingProxyType({})

    def __init__(self, config: HuggingFaceConfig, site: BlockSite | None = None) -> None:
        table = open_table(config)
        self.reader = Reader(config, table.features)
        # As stored: pictures as bytes or paths, not decoded for the sake of a question.
        self.rows = table.with_format("arrow")
        self.source = f"{config.path} {config.split}" if config.split is not None else config.path
        path = Path(config.path)
        self.folder = path if path.is_dir() else path.parent if path.is_file() else None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.source} has rows 0..{len(self) - 1}, got {index}")
        row, provenance = self._row(index), Provenance(self.source, index + 1)
        where = str(provenance)
        pictures = [
            self._picture(value, index, number, where) for number, value in enumerate(self.reader.pictures(row, where))
        ]
        size = pictures[0].size if pictures else None
        turns = turns_of(self.reader.exchange(row, size, where), size, where)
        if not pictures:
            return Sample(None, None, turns, provenance)
        first, *others = pictures
        more = tuple(other.open_image for other in others)
        return Sample(first.open_image, first.size, turns, provenance, more=more, path=first.path)

    def _row(self, index: int) -> dict[str, Any]:
        """One row as plain Python values."""
        found: list[dict[str, Any]] = self.rows[index].to_pylist()
        return found[0]

    def _picture(self, value: Any, index: int, number: int, where: str) -> Picture:
        if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
            size = picture_size(io.BytesIO(value["bytes"]), where)
            return Picture(partial(self._open, index, number), size, "")
        name = value.get("path") if isinstance(value, dict) else value
        if not isinstance(name, str) or not name:
            raise DataError(
                f"{where}: column `{self.reader.columns.image}` must hold pictures or file names, got {value!r}"
            )
        if self.folder is None and not Path(name).is_absolute():
            raise DataError(
                f"{where}: column `{self.reader.columns.image}` holds the file name {name!r}, which is not here"
            )
        return on_disk((self.folder or Path()) / name, where)

    def _open(self, index: int, number: int) -> Image:
        """A picture that stands in its row, read again, so that samples stay small."""
        where = str(Provenance(self.source, index + 1))
        value = self.reader.pictures(self._row(index), where)[number]
        return open_picture(io.BytesIO(value["bytes"]), where)
