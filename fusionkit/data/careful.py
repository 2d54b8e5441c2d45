"""Leaving out samples that cannot be used, where the recipe says so: each is listed, and another takes its place."""

from __future__ import annotations

import json
from pathlib import Path

from fusionkit.data.mixture import Mixture
from fusionkit.errors import DataError
from fusionkit.sample import Sample

MOST_IN_A_ROW = 100
"""So many bad samples one after the other are no accident."""


class Careful:
    """A mixture whose bad samples are replaced by the next good one; `list_file` gets a line for each.

    Rows that cannot be read and pictures that cannot be decoded (each is decoded once more for it) are bad. What takes the place depends on the position
    alone, so a resumed run sees the same. Raises DataError when nothing good follows.
    """

    def __init__(self, mixture: Mixture, list_file: Path) -> None:
        self.mixture = mixture
        self.list_file = list_file

    def __len__(self) -> int:
        return len(self.mixture)

    def __getitem__(self, position: int) -> Sample:
        reason: DataError | None = None
        for further in range(MOST_IN_A_ROW):
            try:
                return _checked(self.mixture[(position + further) % len(self.mixture)])
            except DataError as error:
                self._list(position, error)
                reason = error
        raise DataError(
            f"{MOST_IN_A_ROW} samples in a row cannot be used, the last because of: {reason} (see {self.list_file})"
        )

    def _list(self, position: int, error: DataError) -> None:
        with self.list_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"position": position, "reason": str(error)}) + "\n")


def _checked(sample: Sample) -> Sample:
    """The sample, after decoding its pictures: only then are they known to be whole."""
    for open_image in (sample.open_image, *sample.more):
        if open_image is not None:
            open_image()
    return sample


def skipped(list_file: Path) -> list[str]:
    """Why samples were left out, each reason once."""
    if not list_file.exists():
        return []
    return list(
        dict.fromkeys(json.loads(line)["reason"] for line in list_file.read_text(encoding="utf-8").splitlines())
    )
