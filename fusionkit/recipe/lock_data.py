"""What a lock says of a recipe's data: a hash of every local file and folder that its datasets name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from fusionkit.errors import DataError
from fusionkit.pictures import SUFFIXES
from fusionkit.plugin import BlockConfig, DatasetConfig
from fusionkit.recipe.schema import Recipe

TABLES = (".arrow", ".parquet")
"""Tables may be larger than memory; over LARGE bytes their size, beginning and end stand for them."""
LARGE = 64 * 2**20
CHUNK = 2**20


def data_hashes(recipe: Recipe) -> dict[str, str]:
    """Path -> hash, for what is here; a folder's is of the names of its files and what is in them.

    In a folder a picture counts by name and size. Where missing pictures are fetched, none counts: they come and go.

    Raises DataError for what cannot be read.
    """
    try:
        return dict(
            found for placed in recipe.blocks() if placed.family == "datasets" for found in _named(placed.config)
        )
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read, which the lock needs ({error.strerror})") from error


def _named(config: BlockConfig) -> Iterator[tuple[str, str]]:
    for value in config.model_dump(mode="json").values():
        # Any text may stand here, and one too long for a name makes Path.is_file raise.
        if isinstance(value, str) and os.path.isfile(value):  # noqa: PTH113
            yield value, file_hash(Path(value))
    if isinstance(config, DatasetConfig):
        for folder in (each for each in config.data_folders() if each and Path(each).is_dir()):
            yield folder, _folder_hash(Path(folder), pictures=not getattr(config, "fetch", False))


def file_hash(path: Path) -> str:
    """The SHA-256 of a file's content; read once in a process unless it changes."""
    known = path.stat()
    return f"sha256:{_content(path, known.st_size, known.st_mtime_ns)}"


def _folder_hash(folder: Path, *, pictures: bool) -> str:
    digest = hashlib.sha256()
    for path in sorted(_files(folder)):
        name, known = path.relative_to(folder).as_posix(), path.stat()
        suffix = path.suffix.lower()
        if suffix in SUFFIXES or not suffix:
            if not pictures:
                continue
            told = f"{known.st_size} bytes"
        elif suffix in TABLES and known.st_size > LARGE:
            told = _ends(path, known.st_size, known.st_mtime_ns)
        else:
            told = _content(path, known.st_size, known.st_mtime_ns)
        digest.update(f"{name}\0{told}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def _files(folder: Path) -> Iterator[Path]:
    """The files below a folder, through links, each folder once; hidden ones are what tools leave there."""
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (here := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(here)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = (Path(place, name) for name in names if not name.startswith("."))
        yield from (path for path in paths if path.is_file())


@lru_cache(maxsize=4096)
def _content(path: Path, size: int, changed: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@lru_cache(maxsize=4096)
def _ends(path: Path, size: int, changed: int) -> str:
    """The beginning and the end of a table, where its layout stands, and its size."""
    digest = hashlib.sha256(f"{size}\n".encode())
    with path.open("rb") as file:
        digest.update(file.read(CHUNK))
        file.seek(-CHUNK, os.SEEK_END)
        digest.update(file.read(CHUNK))
    return digest.hexdigest()
