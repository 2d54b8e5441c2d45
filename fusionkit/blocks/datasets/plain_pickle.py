"""Pickles of lists, dictionaries, text and numbers, and of nothing else. Standard library only."""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from fusionkit.errors import DataError


def read_plain_pickle(path: Path, what: str) -> Any:
    """The content of a pickle file that holds plain containers only.

    A pickle can name any function of any module and have it called while it is read. Here no name is looked up, so
    nothing is called: the first one is an error. Text that Python 2 wrote as bytes is read as UTF-8. Raises DataError.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {what}") from error
    try:
        return _Plain(io.BytesIO(content), path).load()
    # What damage to a pickle shows up as; an operation that is not read is a KeyError.
    except (
        pickle.UnpicklingError, struct.error, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError,
        MemoryError, ImportError,
    ) as error:  # fmt: skip
        raise DataError(f"{path}: not a whole pickle ({type(error).__name__}: {error}); {what}") from error


# Everything that makes or fills None, truth values, numbers, text, lists, tuples and dictionaries; and, for a better
# message than "unknown", what looks up a name or refers outside. What is not here is refused when it is met.
_READ = [
    "PROTO",
    "FRAME",
    "STOP",
    "MARK",
    "POP",
    "POP_MARK",
    "DUP",
    "NONE",
    "NEWTRUE",
    "NEWFALSE",
    "INT",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG",
    "LONG1",
    "LONG4",
    "FLOAT",
    "BINFLOAT",
    "STRING",
    "BINSTRING",
    "SHORT_BINSTRING",
    "UNICODE",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
    "EMPTY_LIST",
    "LIST",
    "APPEND",
    "APPENDS",
    "EMPTY_TUPLE",
    "TUPLE",
    "TUPLE1",
    "TUPLE2",
    "TUPLE3",
    "EMPTY_DICT",
    "DICT",
    "SETITEM",
    "SETITEMS",
    "GET",
    "BINGET",
    "LONG_BINGET",
    "PUT",
    "BINPUT",
    "LONG_BINPUT",
    "MEMOIZE",
    "GLOBAL",
    "STACK_GLOBAL",
    "INST",
    "PERSID",
    "BINPERSID",
]


class _Plain(pickle._Unpickler):
    """The reader written in Python: the one in C gives way to no list of operations, and lets a file of ten bytes ask
    for gigabytes of memory."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        code: pickle._Unpickler.dispatch[code] for code in (getattr(pickle, name)[0] for name in _READ)
    }

    def __init__(self, file: io.BytesIO, path: Path) -> None:
        super().__init__(file, encoding="utf-8")
        self.path = path

    def find_class(self, module: str, name: str) -> NoReturn:
        raise DataError(
            f"{self.path}: the pickle names {module}.{name}, which could run code; only plain lists, dictionaries, text "
            "and numbers are read (write it as JSON with a Python you trust the file to)"
        )

    def persistent_load(self, pid: Any) -> NoReturn:
        raise DataError(f"{self.path}: the pickle refers to something outside itself; only plain containers are read")
