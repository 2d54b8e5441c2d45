"""F1 of captions: statements, the judge of words, and a judge of one's own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fusionkit import registry
from fusionkit.blocks.metrics.captions import CaptionF1, WordJudge
from fusionkit.blocks.metrics.specs import CaptionF1Config
from fusionkit.sample import Prediction, Provenance, Sample, Turn

TRUTH = "A red car stands in front of a house. Two dogs sleep. The sky is grey."


def scores(text: str, truth: str = TRUTH, metric: CaptionF1 | None = None) -> tuple[float, float, float]:
    metric = metric or CaptionF1(CaptionF1Config())
    turn = Turn("Describe this picture.", (truth,), "describe")
    metric.update(Prediction(text), turn, Sample(None, None, (turn,), Provenance("test", 1)))
    found = metric.compute()
    return found["precision"], found["recall"], found["caption_f1"]


@pytest.mark.parametrize(
    ("text", "precision", "recall"),
    [
        (TRUTH, 1, 1),
        ("", 0, 0),
        ("The sky is grey.", 1, 1 / 3),
        ("Grey sky; a cat.", 0.5, 1 / 3),
        ("A cat.", 0, 0),
        ("A dog sleeps in front of the house.", 1, 0),  # it compares words, not grammar
        ("Two dogs sleep.\nThe house has a red car, standing in front.", 1, 2 / 3),  # `stands` is another word
    ],
)
def test_statements_are_counted_both_ways(text: str, precision: float, recall: float) -> None:
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0
    assert scores(text) == pytest.approx((precision, recall, f1))


def test_statements_and_words() -> None:
    judge = WordJudge(1.0)
    assert judge.statements("One. Two!  Three? 3.5 m; four\nand the\n") == ["One.", "Two!", "Three?", "3.5 m", "four"]
    assert judge.follows("A red dog.", "There are two red dogs!")
    assert not judge.follows("A red dog.", "There are two dogs!")
    assert WordJudge(0.5).follows("A red dog.", "There are two dogs!")
    assert not judge.follows("a bus", "a bu")


def test_other_questions_are_skipped() -> None:
    metric = CaptionF1(CaptionF1Config())
    turn = Turn("q", ("A cat.",), "free")
    metric.update(Prediction("A cat."), turn, Sample(None, None, (turn,), Provenance("test", 1)))
    assert metric.compute() == {"count": 0}


OWN = '''
from typing import Literal

from fusionkit.blocks.metrics.captions import CaptionF1
from fusionkit.blocks.metrics.specs import CaptionF1Config
from fusionkit.plugin import API_VERSION, BlockSpec


class Config(CaptionF1Config):
    """F1-cap with my judge."""

    type: Literal["mine.caption_f1"] = "mine.caption_f1"


class Judge:
    def statements(self, text):
        return text.split(",")

    def follows(self, statement, text):
        return statement.strip() in text


class Metric(CaptionF1):
    def make_judge(self, config):
        return Judge()


SPEC = BlockSpec(api=API_VERSION, family="metrics", config=Config, factory="my_judge:Metric", summary="Mine.")
'''


def test_a_judge_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_files", {})
    file = tmp_path / "my_judge.py"
    file.write_text(OWN)
    (spec,) = registry.load_plugin_file(file)
    metric = registry.factory(spec)(spec.config(), None)
    turn = Turn("q", ("a cat, a dog",), "describe")
    metric.update(Prediction("a dog, a bird"), turn, Sample(None, None, (turn,), Provenance("test", 1)))
    assert metric.compute()["mine.caption_f1"] == 0.5
    del sys.modules["my_judge"]
