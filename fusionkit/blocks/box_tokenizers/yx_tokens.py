"""Coordinate tokens in the order y x y x with the label behind them: the form that PaliGemma and Pix2Seq share. Torch-free.

Neither has points: here a point is two tokens, y x.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from fusionkit.blocks.box_tokenizers.frame import BoxFormat, Item, Items, checked_label
from fusionkit.geometry import Size

_LABEL = r"\w(?:[^<>;\n]*[^<>;\s])?"
LABEL = re.compile(_LABEL)


def piece_pattern(token: str) -> re.Pattern[str]:
    """Tokens with an optional label, and more of them after ` ; `."""
    run = rf"{token}(?:\s*+{token})*+(?:[ ]?{_LABEL})?"
    return re.compile(rf"{run}(?:\s*+;\s*+{run})*+")


class YxTokens(BoxFormat):
    """`TOKEN_y0 TOKEN_x0 TOKEN_y1 TOKEN_x1 label ; ...`, without spaces between tokens.

    Lenient parsing allows spaces between tokens. A run of tokens that is not 4 or 2 long is malformed.
    """

    token: ClassVar[re.Pattern[str]]
    stray = re.compile(r"(?!)")  # every token belongs to some run

    @abstractmethod
    def spell(self, number: int) -> str:
        """The token of a number."""

    def vocabulary(self) -> tuple[str, ...]:
        return self.coordinates()

    def coordinates(self) -> tuple[str, ...]:
        return tuple(self.spell(number) for number in range(self.steps(Size(1, 1))[0] + 1))

    def write(self, group: Items, label: str, size: Size) -> str:
        named = f" {checked_label(label, LABEL, self.config.type)}" if label else ""
        return self.join(["".join(map(self.spell, _swapped(self.numbers(item, size)))) + named for item in group])

    def join(self, pieces: list[str]) -> str:
        return " ; ".join(pieces)

    def read(self, match: re.Match[str], size: Size) -> Iterator[Item]:
        for piece in match.group().split(";"):
            numbers = [int(number) for number in self.token.findall(piece)]
            yield self.item(_swapped(numbers), size, piece.rpartition(">")[2].strip())


def _swapped(numbers: tuple[int, ...] | list[int]) -> list[int]:
    """x y x y as y x y x, and back; an odd run stays odd, which is an error later."""
    return [number for at in range(0, len(numbers), 2) for number in reversed(numbers[at : at + 2])]
