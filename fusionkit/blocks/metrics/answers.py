"""Scores of short answers against one or several true ones: exact match, relaxed correctness, ANLS, VQA. Torch-free.

An answer's true texts are the parts of the turn's text between `separator` (none: the whole text is the one truth).
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable
from fractions import Fraction

from fusionkit.blocks.metrics.specs import AnlsConfig, AnswerMatchConfig, RelaxedCorrectnessConfig, VqaScoreConfig
from fusionkit.blocks.metrics.tally import Tally
from fusionkit.blocks.metrics.vqa_words import vqa_normalised
from fusionkit.plugin import BlockSite
from fusionkit.sample import Prediction, Sample, Turn

AnswerConfig = AnlsConfig | AnswerMatchConfig | RelaxedCorrectnessConfig | VqaScoreConfig


class _Answers(Tally):
    """Scores turns that are answered in words alone."""

    def __init__(self, config: AnswerConfig, site: BlockSite | None = None) -> None:
        super().__init__(config, site)
        self.separator = config.separator

    def applies(self, turn: Turn) -> bool:
        return bool(turn.text) and not turn.boxes and not turn.points

    def score(self, prediction: Prediction, turn: Turn, sample: Sample) -> float:
        answers = turn.text.split(self.separator) if self.separator else [turn.text]
        return self.against(final_answer(prediction.text), [" ".join(answer.split()) for answer in answers])

    @abstractmethod
    def against(self, text: str, answers: list[str]) -> float:
        """The score of one answer against all true ones."""


class AnswerMatch(_Answers):
    """Share of answers equal to one of the true ones, letter case aside."""

    def __init__(self, config: AnswerMatchConfig, site: BlockSite | None = None) -> None:
        super().__init__(config, site)
        plain: dict[str, Callable[[str], str]] = {"case": str.casefold, "punctuation": _letters, "exact": str}
        self.plain = plain[config.ignore]

    def against(self, text: str, answers: list[str]) -> float:
        return float(any(self.plain(text) == self.plain(answer) for answer in answers))


class RelaxedCorrectness(_Answers):
    """Share of answers that are numbers within `tolerance` of the true number, or the same text."""

    def __init__(self, config: RelaxedCorrectnessConfig, site: BlockSite | None = None) -> None:
        super().__init__(config, site)
        self.tolerance = Fraction(str(config.tolerance))
        self.released = config.numbers == "released"

    def against(self, text: str, answers: list[str]) -> float:
        return float(any(self._right(text, answer) for answer in answers))

    def _right(self, text: str, answer: str) -> bool:
        found, wanted = (read_number(each, self.released) for each in (text, answer))
        if found is None or wanted is None or (self.released and wanted == 0):
            return text.casefold() == answer.casefold()
        return abs(found - wanted) <= self.tolerance * abs(wanted)


class Anls(_Answers):
    """Mean of 1 - edit distance / longer length, taken as 0 up to `threshold`; the best over the true answers."""

    def __init__(self, config: AnlsConfig, site: BlockSite | None = None) -> None:
        super().__init__(config, site)
        self.threshold = config.threshold

    def against(self, text: str, answers: list[str]) -> float:
        return max(self._similar(text.casefold(), answer.casefold()) for answer in answers)

    def _similar(self, text: str, answer: str) -> float:
        longer = max(len(text), len(answer))
        if not longer:
            return 1.0
        similarity = 1 - edit_distance(text, answer) / longer
        return similarity if similarity > self.threshold else 0.0


class VqaScore(_Answers):
    """min(number of equal true answers / 3, 1), after the VQA challenge's normalisation of words."""

    def against(self, text: str, answers: list[str]) -> float:
        given = Counter(vqa_normalised(answer) for answer in answers)
        return min(given[vqa_normalised(text)] / 3, 1.0)


def _letters(text: str) -> str:
    """Lower case without punctuation."""
    return re.sub(r"[^\w\s]|_", "", text.casefold()).strip()


def final_answer(text: str) -> str:
    """What is scored of an answer: the text after `Answer:`; of several lines the most frequent; single spaces."""
    text = text.rpartition("Answer:")[2].strip()
    lines = Counter(" ".join(line.split()) for line in text.splitlines() if line.strip())
    return lines.most_common(1)[0][0] if lines else ""


_PLAIN = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]{1,3})?", re.IGNORECASE)
_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")


def read_number(text: str, released: bool = False) -> Fraction | None:
    """A number, exactly: thousands separators and a leading $, € or £ are dropped, `%` divides by 100; None if none.

    `released`: as the released code reads it, without separators and currencies.
    """
    text = text.strip()
    percent = text.endswith("%")
    text = text.rstrip("%").strip()
    if not released:
        text = _THOUSANDS.sub("", re.sub(r"^([+-]?)\s*[$€£]\s*", r"\1", text))
    if len(text) > 40 or not _PLAIN.fullmatch(text):
        return None
    return Fraction(text) / (100 if percent else 1)


def edit_distance(one: str, other: str) -> int:
    """Least number of letters to insert, delete or replace (Levenshtein)."""
    row = list(range(len(other) + 1))
    for number, letter in enumerate(one, start=1):
        last, row[0] = row[0], number
        for place, wanted in enumerate(other, start=1):
            last, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, last + (letter != wanted))
    return row[-1]
