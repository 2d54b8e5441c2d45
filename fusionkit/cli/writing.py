"""How verbs write result files: whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionkit.cli.output import emit, note
from fusionkit.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a name beside `path` to write to, and moves it there when all went well: a failure leaves what was there.

    Raises UsageError when it cannot be written.
    """
    staging = path.with_name(f".{os.getpid()}.tmp.{path.name}")
    try:
        yield staging
        staging.replace(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {reason(error, path)}") from error
    finally:
        with suppress(OSError):
            staging.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file. Raises UsageError."""
    with replacing(path) as staging:
        staging.write_text(text, encoding="utf-8")


def print_or_write(lines: Sequence[str], output: Path | None, what: str) -> None:
    """Lines to stdout, or to a file, saying `what` is in it. Raises UsageError."""
    if output is None:
        for line in lines:
            emit(line)
    else:
        write_text(output, "\n".join(lines) + "\n")
        note(f"wrote {output} with {what}")


def write_json(path: Path, data: Any) -> None:
    """Write JSON to a file and say so. Raises UsageError."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    note(f"wrote {path}")


def write_picture(path: Path, picture: Image) -> None:
    """Write a picture in the format that the name's ending says. Raises UsageError."""
    check_picture_name(path)
    with replacing(path) as staging:
        picture.save(staging)


def check_picture_name(path: Path) -> None:
    """Raises UsageError when a name has no ending that a picture can be written as: to know it before the work."""
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise UsageError(f"-o {path}: expected a name that ends in .png (or .jpg, .webp)")


def make_folder(path: Path) -> None:
    """Make a folder and those above it, if they are not there. Raises UsageError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{path}: cannot make this folder: {reason(error, path / 'x')}") from error


def reason(error: OSError, path: Path) -> str:
    """Why a file cannot be at `path`, in words; names a file that stands where a folder would have to."""
    for above in reversed(path.parents):
        if above.exists() and not above.is_dir():
            return f"{above} is a file, not a folder; choose another -o"
    if path.is_dir():
        return "it is a folder; choose another -o"
    return error.strerror or str(error)
