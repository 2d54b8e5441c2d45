"""Scores of answers in words and numbers. Torch-free."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import Self

from fusionkit.blocks.metrics.specs import CountAccuracyConfig
from fusionkit.blocks.metrics.tally import Tally
from fusionkit.errors import DataError
from fusionkit.plugin import BlockSite
from fusionkit.sample import Prediction, Sample, Turn

_WORDS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
]
_NUMBERS = {word: number for number, word in enumerate(_WORDS)} | {"no": 0, "none": 0, "nothing": 0}
# A whole number not inside a word, a decimal or a range such as 100-200; or a number in words.
_NUMBER = re.compile(rf"(?<![\w.,-])\d+(?![\w-]|[.,]\d)|\b(?:{'|'.join(_NUMBERS)})\b", re.IGNORECASE | re.ASCII)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def read_count(text: str) -> int | None:
    """The last whole number in a text, in digits or words (`none` and `no` are 0); None without one.

    More than 30 digits are a model that repeats itself and no number (Python itself refuses thousands of them).
    """
    found = _NUMBER.findall(_THOUSANDS.sub("", text))
    if not found:
        return None
    word = found[-1].lower()
    if len(word) > 30:
        return None
    return _NUMBERS[word] if word in _NUMBERS else int(word)


class CountAccuracy(Tally):
    """Share of count questions answered with the right number, or one at most `within` away.

    With `average: counts` every true number counts the same, however many questions have it.
    """

    def __init__(self, config: CountAccuracyConfig, site: BlockSite | None = None) -> None:
        super().__init__(config, site)
        self.within = config.within
        self.by_count = config.average == "counts"
        self._true = array("q")

    def applies(self, turn: Turn) -> bool:
        return turn.kind == "count"

    def score(self, prediction: Prediction, turn: Turn, sample: Sample) -> float:
        wanted = read_count(turn.text)
        if wanted is None:
            raise DataError(f"{sample.provenance}: the answer to {turn.question!r} is {turn.text!r}, expected a number")
        self._true.append(min(wanted, 2**63 - 1))
        found = read_count(prediction.text)
        return float(found is not None and abs(found - wanted) <= self.within)

    def merge(self, other: Self) -> None:
        super().merge(other)
        self._true += other._true

    def weights(self) -> Sequence[float]:
        if not self.by_count:
            return super().weights()
        often = Counter(self._true)
        return [1 / often[count] for count in self._true]


class ExactMatch(Tally):
    """Share of text answers equal to the truth; letter case, runs of spaces and a final full stop do not count."""

    def applies(self, turn: Turn) -> bool:
        return bool(turn.text) and not turn.boxes and not turn.points

    def score(self, prediction: Prediction, turn: Turn, sample: Sample) -> float:
        return float(_plain(prediction.text) == _plain(turn.text))


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold().removesuffix(".")
