"""What a plain word in a recipe means: the core scalars of YAML 1.2, less what people misread.

`1e-4` is a number, `off`, `yes` and `2024-01-01` are strings, `010` is refused (octal, decimal or a name?).
"""

from __future__ import annotations

import math
import re

Scalar = str | int | float | bool | None

_WORDS: dict[str, Scalar] = {
    "": None,
    "~": None,
    **dict.fromkeys(("null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER = re.compile(r"[-+]?[0-9]+")
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]")
_NOT_A_NUMBER = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")

MAX_DIGITS = 40
"""More digits than any number here needs; longer ones are refused before they are converted."""
_LARGEST = 2**63 - 1


def resolve(text: str) -> Scalar:
    """The value of a plain (unquoted) scalar.

    Raises: ValueError, with a message that starts with what to do or what is wrong.
    """
    if text in _WORDS:
        return _WORDS[text]
    if not text[0].isascii() or text[0] not in "+-.0123456789":
        return text
    if _NOT_A_NUMBER.fullmatch(text):
        raise ValueError(f"{text} is no number a recipe can hold")
    is_integer = _INTEGER.fullmatch(text) is not None
    if not (is_integer or _BASED.fullmatch(text) or _FLOAT.fullmatch(text)):
        return text
    if len(text) > MAX_DIGITS:
        raise ValueError(
            f"a number of {len(text)} characters is too long, at most {MAX_DIGITS} (quote it if it is text)"
        )
    if _LEADING_ZERO.match(text):
        raise ValueError(
            f"{text} starts with a zero, which reads differently to different people (drop it, or quote it)"
        )
    return _integer(text) if is_integer or text[1:2] in ("o", "x") else _float(text)


def _integer(text: str) -> int:
    value = int(text, {"o": 8, "x": 16}.get(text[1:2], 10))
    if abs(value) > _LARGEST:
        raise ValueError(f"{text} does not fit in 64 bits (quote it if it is text)")
    return value


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is too large for a number (quote it if it is text)")
    return value
