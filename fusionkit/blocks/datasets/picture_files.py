"""Where the pictures of rows are: a folder, an address with a local copy, or the row itself. Torch-free."""

from __future__ import annotations

import hashlib
import io
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fusionkit.blocks.datasets.rows import Rows
from fusionkit.errors import DataError
from fusionkit.geometry import Size
from fusionkit.pictures import SUFFIXES, open_picture, picture_size

if TYPE_CHECKING:
    from PIL.Image import Image

TIMEOUT = 30
"""Seconds without an answer from a server."""
LARGEST = 200 * 2**20
"""Bytes of a picture; more are not fetched."""


class Picture(NamedTuple):
    """What a sample holds of its picture."""

    open_image: Callable[[], Image]
    size: Size
    path: str


def on_disk(path: Path, where: str) -> Picture:
    """The picture in a file; raises DataError."""
    return Picture(partial(open_picture, path, where), picture_size(path, where), str(path))


def in_row(rows: Rows, index: int) -> Picture:
    """A picture that stands in its row as `image: {"bytes": ...}`, as parquet files hold them; raises DataError.

    The row is read again when the picture is opened, so that samples stay small.
    """
    return Picture(partial(_open_in_row, rows, index), picture_size(_content(rows, index), rows.where(index)), "")


def is_address(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def kept_name(address: str) -> str:
    """The file name under which the picture of an address is kept: the SHA-256 of the address."""
    return hashlib.sha256(address.encode()).hexdigest()


def kept(folder: Path, name: str) -> Path | None:
    """The file of a name in a folder, with any picture ending or none."""
    return next((path for suffix in ("", *SUFFIXES) if (path := folder / f"{name}{suffix}").is_file()), None)


def fetch(address: str, folder: Path, where: str, sha256: str | None = None, name: str | None = None) -> Path:
    """The local copy of a picture, fetched once and kept as `folder/name`.

    Only what decodes as a picture and has the given SHA-256 is kept; a copy appears whole or not at all. Raises
    DataError naming the row and the address.
    """
    name = name or kept_name(address)
    if name != Path(name).name:
        raise DataError(f"{where}: {name!r} is no file name to keep a picture under")
    target = folder / name
    if (found := kept(folder, name)) is not None:
        return found
    if not is_address(address):
        raise DataError(f"{where}: {address!r} is no address of a picture; expected http:// or https://")
    content = _downloaded(address, where)
    digest = hashlib.sha256(content).hexdigest()
    if sha256 is not None and digest != sha256:
        raise DataError(
            f"{where}: {address} has another picture now: SHA-256 {digest[:12]}..., expected {sha256[:12]}..."
        )
    picture_size(io.BytesIO(content), f"{where}: {address}")
    # Rows may share an address, and threads and processes fetch at the same time: each writes a file of its own.
    staging = folder / f".{os.getpid()}.{threading.get_ident()}.{name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        staging.write_bytes(content)
        staging.replace(target)
    except OSError as error:
        staging.unlink(missing_ok=True)
        raise DataError(f"{where}: cannot keep {address} as {target}: {error.strerror or error}") from error
    return target


def _downloaded(address: str, where: str) -> bytes:
    request = urllib.request.Request(address, headers={"User-Agent": "fusionkit"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            content: bytes = answer.read(LARGEST + 1)
    except urllib.error.HTTPError as error:
        error.close()
        raise DataError(f"{where}: {address}: the server answers {error.code} {error.reason}") from error
    except (OSError, HTTPException, ValueError) as error:  # no server, no answer in time, an address that is none
        raise DataError(f"{where}: {address}: cannot be fetched ({error})") from error
    if len(content) > LARGEST:
        raise DataError(f"{where}: {address}: more than {LARGEST // 2**20} MiB, not fetched")
    return content


def _content(rows: Rows, index: int) -> io.BytesIO:
    value = rows.row(index).get("image")
    content = value.get("bytes") if isinstance(value, dict) else None
    if not isinstance(content, bytes):
        raise DataError(f"{rows.where(index)}: 'image' must hold the picture's bytes, got {type(content).__name__}")
    return io.BytesIO(content)


def _open_in_row(rows: Rows, index: int) -> Image:
    return open_picture(_content(rows, index), rows.where(index))
