"""JSON files of rows, read so that every error can name file and line. Standard library only."""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from typing import Any, NoReturn, Protocol

from fusionkit.blocks.datasets.parquet import ParquetRows
from fusionkit.errors import DataError

_BOM = b"\xef\xbb\xbf"


class Rows(Protocol):
    """A file of rows."""

    path: Path

    def __len__(self) -> int: ...

    def line(self, index: int) -> int:
        """The number of a row in its file, from 1."""

    def where(self, index: int) -> str:
        """`file:line` of a row."""

    def row(self, index: int) -> dict[str, Any]:
        """One row; raises DataError naming file and line."""


def open_rows(path: Path, what: str) -> Rows:
    """The rows of a file with one JSON object per line, or of a parquet file, by its ending; raises DataError."""
    return ParquetRows(path, what) if path.suffix == ".parquet" else JsonLines(path, what)


class JsonLines:
    """The rows of a file with one JSON object per line; blank lines are passed over but counted.

    Only line positions are kept, so files larger than memory can be used, and the object travels to data workers.
    Raises DataError when the file is missing, unreadable or has no rows.
    """

    def __init__(self, path: str | Path, what: str) -> None:
        self.path = Path(path)
        self._lines, self._offsets = array("Q"), array("Q")
        if self.path.is_dir():
            raise DataError(f"{self.path}: is a folder; {what} needs a file with one JSON object per line")
        if not self.path.exists():
            raise DataError(f"{self.path}: no such file; {what} needs a file with one JSON object per line")
        try:
            with self.path.open("rb") as file:
                offset = 0
                for number, line in enumerate(file, start=1):
                    if line.removeprefix(_BOM).strip():
                        self._lines.append(number)
                        self._offsets.append(offset)
                    offset += len(line)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror})") from error
        if not self._lines:
            raise DataError(f"{self.path}: no rows; {what} needs one JSON object per line")

    def __len__(self) -> int:
        return len(self._lines)

    def line(self, index: int) -> int:
        """The line number of a row, from 1."""
        return self._lines[index]

    def where(self, index: int) -> str:
        """`file:line` of a row."""
        return f"{self.path}:{self.line(index)}"

    def row(self, index: int) -> dict[str, Any]:
        """One row; raises DataError naming file and line when it is not a JSON object."""
        with self.path.open("rb") as file:
            file.seek(self._offsets[index])
            line = file.readline().rstrip()
        row = parse(line, self.where(index))
        if not isinstance(row, dict):
            raise DataError(f"{self.where(index)}: expected a JSON object {{...}}, got {type_name(row)}")
        return row


def parse(content: bytes, where: str) -> Any:
    """JSON without its loopholes: UTF-8 only, no repeated keys, no NaN. Raises DataError."""
    try:
        text = content.removeprefix(_BOM).decode("utf-8")
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 (byte {error.start}); save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}" if "\n" in text.strip() else f"column {error.colno}"
        raise DataError(f"{where}: not valid JSON at {place}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON: {error}") from error


def read_json(path: Path, what: str) -> Any:
    """A whole JSON file; raises DataError when it is missing, unreadable or not JSON."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; {what}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return parse(content, str(path))


def text_of(row: dict[str, Any], key: str, where: str) -> str:
    """A field that must be text with something in it."""
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        got = "nothing" if value is None else repr(value) if isinstance(value, str) else type_name(value)
        raise DataError(f"{where}: '{key}' must be text, got {got}")
    return value.strip()


def type_name(value: Any) -> str:
    """What JSON calls the type of a value."""
    if value is None:
        return "null"
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), type(value).__name__)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key '{repeated}' is given twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")
