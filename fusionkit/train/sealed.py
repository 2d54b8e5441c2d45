"""Sealed folders: whole, on the disk, and able to say whether they still are what was written.

A folder is written beside its place, every file is hashed into `hashes.json`, all of it is flushed and then it appears
in one rename. A process killed at any moment leaves either a sealed folder or none.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from fusionkit.model.checkpoint import flush, replace_folder

HASHES = "hashes.json"
_CHUNK = 2**20


def seal(staging: Path, target: Path) -> None:
    """Hash and flush the files of `staging` and move it to `target`, in place of what is there."""
    hashes = {path.name: file_hash(path) for path in sorted(staging.iterdir())}
    (staging / HASHES).write_text(json.dumps(hashes, indent=2) + "\n", encoding="utf-8")
    flush(staging)
    replace_folder(staging, target)


def fault(folder: Path) -> str | None:
    """What is wrong with a sealed folder, in words; None when every file is what was written."""
    try:
        hashes: dict[str, str] = json.loads((folder / HASHES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{HASHES} is missing or damaged"
    for name, expected in hashes.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        try:
            found = file_hash(path)
        except OSError as error:
            return f"{name} cannot be read ({error.strerror or error})"
        if found != expected:
            return f"{name} is not what was written (its hash differs)"
    return None


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"
