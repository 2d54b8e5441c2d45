"""Parquet files of rows, read one row group at a time. Needs pyarrow, which is imported inside the functions."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Any

from fusionkit.errors import DataError


class ParquetRows:
    """The rows of a parquet file, numbered from 1; like `JsonLines` for what reads them.

    One row group is kept at a time. The object travels to data workers, where it opens the file anew. Raises DataError
    when the file is missing, unreadable or has no rows, and when pyarrow is not installed.
    """

    def __init__(self, path: str | Path, what: str) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise DataError(f"{self.path}: no such file; {what} needs a file of rows")
        self._file: Any = None
        self._kept: tuple[int, Any] | None = None
        metadata = self._opened().metadata
        self._starts: list[int] = [
            0,
            *accumulate(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)),
        ]
        if not len(self):
            raise DataError(f"{self.path}: no rows; {what} needs at least one")

    def __len__(self) -> int:
        return self._starts[-1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None, "_kept": None}

    def line(self, index: int) -> int:
        """The number of a row, from 1."""
        return index + 1

    def where(self, index: int) -> str:
        """`file:row` of a row."""
        return f"{self.path}:{self.line(index)}"

    def row(self, index: int) -> dict[str, Any]:
        """One row as plain Python values; raises DataError naming file and row when it cannot be read."""
        group = bisect_right(self._starts, index) - 1
        try:
            if self._kept is None or self._kept[0] != group:
                self._kept = group, self._opened().read_row_group(group)
            found: list[dict[str, Any]] = self._kept[1].slice(index - self._starts[group], 1).to_pylist()
        except (OSError, ValueError) as error:  # what pyarrow raises derives from these
            raise DataError(f"{self.where(index)}: cannot be read ({error})") from error
        return found[0]

    def _opened(self) -> Any:
        if self._file is None:
            try:
                from pyarrow import ArrowException, parquet
            except ImportError as error:
                raise DataError(
                    f"{self.path}: reading parquet needs pyarrow; install it with `pip install 'fusionkit[parquet]'`, "
                    "or give the rows as .jsonl"
                ) from error
            try:
                self._file = parquet.ParquetFile(self.path)
            except (OSError, ArrowException) as error:
                raise DataError(f"{self.path}: not a parquet file that can be read ({error})") from error
        return self._file
