"""Results of pictures already done, kept on disk line by line, so that an interrupted analysis goes on.

    {"kind": "fusionkit_partial", "version": 1, "settings": {...}}
    {"picture": "cat.jpg", "bytes": 48211, "values": {...}}

A line is complete or it does not count: a torn last one is cut off. Results under other settings (another encoder,
other weights, other layers) are never mixed in.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fusionkit.analysis.photos import Photo
from fusionkit.errors import UsageError

KIND, VERSION = "fusionkit_partial", 1


class Partial:
    """The results of one encoder, one line per picture; in memory are only the pictures' names.

    Raises UsageError when the file holds results of other settings, unless `fresh` says to drop them.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, fresh: bool = False) -> None:
        self.path = path
        header = {"kind": KIND, "version": VERSION, "settings": json.loads(json.dumps(settings))}
        if fresh or not path.exists() or not _cut_torn_line(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_line(header).encode())
        self._check(header)
        self._places = dict(self._scan())

    def has(self, photo: Photo) -> bool:
        """Whether this picture's result is there; not if the file has changed its size since."""
        return (photo.name, photo.bytes) in self._places

    def add(self, photo: Photo, values: Mapping[str, Any]) -> None:
        """Store a picture's result; it has left this process when this returns."""
        with self.path.open("ab") as file:
            self._places[photo.name, photo.bytes] = file.tell()
            file.write(_line({"picture": photo.name, "bytes": photo.bytes, "values": values}).encode())

    def values(self, photos: Sequence[Photo]) -> Iterator[Mapping[str, Any]]:
        """The stored results of these pictures, in their order, read one at a time."""
        with self.path.open("rb") as file:
            for photo in photos:
                file.seek(self._places[photo.name, photo.bytes])
                yield json.loads(file.readline())["values"]

    def _scan(self) -> Iterator[tuple[tuple[str, int], int]]:
        """Where each picture's line starts; of two the later, which is the newer."""
        with self.path.open("rb") as file:
            place = len(file.readline())
            for number, line in enumerate(file, start=2):
                try:
                    record = json.loads(line)
                    yield (record["picture"], record["bytes"]), place
                except (ValueError, KeyError, TypeError) as error:
                    raise UsageError(
                        f"{self.path}:{number}: damaged; choose another -o, or say --fresh to start again"
                    ) from error
                place += len(line)

    def _check(self, header: Mapping[str, Any]) -> None:
        with self.path.open(encoding="utf-8") as file:
            try:
                found = json.loads(file.readline())
            except ValueError as error:
                raise UsageError(f"{self.path}: not partial results of an analysis; choose another -o") from error
        if found != header:
            before = found.get("settings", {}) if isinstance(found, dict) else {}
            changed = sorted(
                key for key in {*before, *header["settings"]} if before.get(key) != header["settings"].get(key)
            )
            raise UsageError(
                f"{self.path}: holds results of other settings ({', '.join(changed) or 'another version'} differ); "
                "choose another -o, or say --fresh to drop them"
            )


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"


def _cut_torn_line(path: Path) -> bool:
    """Cut off what follows the last line end; whether a whole line is left."""
    with path.open("r+b") as file:
        end = file.seek(0, 2)
        while end:
            start = max(0, end - 65536)
            file.seek(start)
            place = file.read(end - start).rfind(b"\n")
            if place >= 0:
                file.truncate(start + place + 1)
                return True
            end = start
        return False
