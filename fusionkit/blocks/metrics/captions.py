"""F1 of captions: which statements of a description are true, and which of the truth it makes. Torch-free.

The paper judges statements with a language model. Here a `Judge` does: the one that comes along compares words, which
is exact and repeatable but knows no synonyms. Another one is a subclass:

    class Asked(CaptionF1):
        def make_judge(self, config):
            return MyJudge()
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Protocol

from fusionkit.blocks.metrics.specs import CaptionF1Config
from fusionkit.blocks.metrics.tally import Tally
from fusionkit.plugin import BlockSite
from fusionkit.sample import Prediction, Sample, Turn


class Judge(Protocol):
    """Takes descriptions apart and says whether a statement follows from one."""

    def statements(self, text: str) -> list[str]:
        """The statements that a description makes."""

    def follows(self, statement: str, text: str) -> bool:
        """Whether a description says so."""


class CaptionF1(Tally):
    """Mean over descriptions of precision, recall and F1 of their statements; under the metric's name stands F1.

    Precision is the share of the answer's statements that follow from the truth, recall the share of the truth's that
    follow from the answer. An answer without a statement scores 0.
    """

    def __init__(self, config: CaptionF1Config, site: BlockSite | None = None) -> None:
        super().__init__(config, site)
        self.judge = self.make_judge(config)

    def make_judge(self, config: CaptionF1Config) -> Judge:
        """Who judges; a subclass brings another."""
        return WordJudge(config.words)

    def applies(self, turn: Turn) -> bool:
        return turn.kind == "describe" and bool(turn.text)

    def score(self, prediction: Prediction, turn: Turn, sample: Sample) -> Mapping[str, float]:
        precision = self._share(prediction.text, turn.text)
        recall = self._share(turn.text, prediction.text)
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        return {self.name: f1, "precision": precision, "recall": recall}

    def _share(self, text: str, source: str) -> float:
        """The share of a text's statements that follow from another text."""
        statements = self.judge.statements(text)
        return sum(self.judge.follows(each, source) for each in statements) / len(statements) if statements else 0.0


class WordJudge:
    """A statement is a sentence or a part of one between semicolons; it follows from a text that has enough of its words.

    Words are compared in lower case without a plural's s, each once; those in `FILLERS` do not count. Enough is
    `share` of the statement's words.
    """

    def __init__(self, share: float) -> None:
        self.share = share

    def statements(self, text: str) -> list[str]:
        return [part.strip() for part in _END.split(text) if _words(part)]

    def follows(self, statement: str, text: str) -> bool:
        wanted, there = set(_words(statement)), set(_words(text))
        return len(wanted & there) >= self.share * len(wanted)


_END = re.compile(r"(?<=[.!?])\s+|[;\n]+")
FILLERS = frozenset(
    [
        "a",
        "an",
        "the",
        "this",
        "that",
        "these",
        "those",
        "there",
        "it",
        "its",
        "is",
        "are",
        "was",
        "were",
        "be",
        "being",
        "been",
        "has",
        "have",
        "had",
        "of",
        "in",
        "on",
        "at",
        "to",
        "with",
        "and",
        "or",
        "by",
        "for",
        "from",
        "as",
    ]
)


@lru_cache(maxsize=1024)
def _words(text: str) -> tuple[str, ...]:
    words = re.findall(r"[^\W_]+", text.casefold())
    return tuple(_singular(word) for word in words if word not in FILLERS)


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
