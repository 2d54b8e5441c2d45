"""The text of a recipe file, read within limits, and what every source of a recipe has to keep to."""

from __future__ import annotations

import re
from pathlib import Path

from fusionkit.errors import Problem, RecipeSyntaxError

MAX_BYTES = 2**20
MAX_DEPTH = 32
MAX_NODES = 10_000

CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")
"""What text in a recipe cannot hold: control characters, line breaks that editors do not count, halves of pairs."""


def read_text(path: Path, name: str) -> str:
    """The text of a recipe file; `name` is how errors call it. Reads no more than the limit, whatever the file is.

    Raises: OSError when it cannot be read, RecipeSyntaxError when it is no UTF-8 text or too large.
    """
    with path.open("rb") as file:
        return decode(file.read(MAX_BYTES + 1), name)


def decode(data: bytes, name: str) -> str:
    """UTF-8 text without control characters.

    Raises: RecipeSyntaxError, with the byte offset or the line of the first fault.
    """
    if len(data) > MAX_BYTES:
        raise _fault(name, f"larger than {MAX_BYTES} bytes", "is it a recipe?", byte=MAX_BYTES)
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        message = f"not UTF-8 text: byte 0x{data[error.start]:02x} at offset {error.start}"
        raise _fault(name, message, "save it as UTF-8", byte=error.start) from error
    if bad := CONTROL.search(text):
        line = text.count("\n", 0, bad.start()) + 1
        column = bad.start() - text.rfind("\n", 0, bad.start())
        message = f"control character U+{ord(bad.group()):04X} is not allowed"
        raise RecipeSyntaxError([Problem(name, line, column, "", message, "remove it")])
    return text


def _fault(name: str, message: str, hint: str = "", byte: int | None = None) -> RecipeSyntaxError:
    return RecipeSyntaxError([Problem(name, 0, 0, "", message, hint, byte)])


def shorten(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
