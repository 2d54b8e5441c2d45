"""Intervals of scores, comparisons of two runs, and metrics that processes fill apart."""

from __future__ import annotations

import json
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fusionkit import registry
from fusionkit.blocks.metrics.interval import Group, bootstrap, bootstrap_difference, wilson
from fusionkit.blocks.metrics.tally import Difference
from fusionkit.errors import UsageError
from fusionkit.geometry import Box
from fusionkit.sample import Prediction, Provenance, Sample, Turn
from fusionkit.testing import fakes

TRUE, FAR = Box(0, 0, 10, 10), Box(50, 50, 60, 60)
TURN = Turn("q", (TRUE,), "box")


def make(name: str, **config: Any) -> Any:
    spec = registry.spec("metrics", name)
    return registry.factory(spec)(spec.config.model_validate_json(json.dumps(config)), None)


def fed(name: str, right: list[bool], per_picture: int = 1, **config: Any) -> Any:
    metric = make(name, **config)
    for number, hit in enumerate(right):
        sample = Sample(None, None, (TURN,), Provenance("test", number // per_picture))
        metric.update(Prediction("", (TRUE if hit else FAR,)), TURN, sample)
    return metric


@pytest.mark.parametrize(("share", "count", "low", "high"), [(0.5, 100, 0.4038, 0.5962), (1.0, 10, 0.7225, 1.0)])
def test_wilson(share: float, count: int, low: float, high: float) -> None:
    assert wilson(share, count) == pytest.approx((low, high), abs=1e-4)


def test_the_interval_of_many_answers_is_the_normal_one() -> None:
    draw = random.Random(0)
    right = [draw.random() < 0.7 for _ in range(2000)]
    found = fed("box_accuracy", right).compute()
    share = sum(right) / len(right)
    half = 1.96 * (share * (1 - share) / len(right)) ** 0.5
    assert (found["low"], found["high"]) == pytest.approx((share - half, share + half), abs=0.15 * half)


def test_answers_about_one_picture_do_not_count_as_independent() -> None:
    draw = random.Random(1)
    right = [hit for hit in (draw.random() < 0.5 for _ in range(100)) for _ in range(10)]
    alone, together = fed("box_accuracy", right).compute(), fed("box_accuracy", right, per_picture=10).compute()
    assert alone["box_accuracy"] == together["box_accuracy"]
    assert together["high"] - together["low"] > 2.5 * (alone["high"] - alone["low"])  # sqrt(10) in theory


def test_intervals_cover_as_often_as_they_say() -> None:
    draw, covered = random.Random(2), 0
    for _ in range(200):
        found = fed("box_accuracy", [draw.random() < 0.6 for _ in range(60)]).compute()
        covered += found["low"] <= 0.6 <= found["high"]
    assert 180 <= covered <= 199  # 95 % of 200 is 190, with a standard deviation of 3


def test_scores_without_spread_are_not_certain() -> None:
    found = fed("box_accuracy", [True] * 10).compute()
    assert (found["low"], found["high"]) == pytest.approx(wilson(1.0, 10))
    assert bootstrap({"a": Group(0.0, 3.0)}) == pytest.approx(wilson(0.0, 1))
    low, high = bootstrap({str(number): Group(0.5, 1.0) for number in range(100)})
    assert (low, high) == pytest.approx((0.5 - 0.5 * wilson(0, 100)[1], 0.5 + 0.5 * wilson(0, 100)[1]))


def test_the_paired_bootstrap_sees_what_two_intervals_hide() -> None:
    draw = random.Random(3)
    hard = [draw.random() for _ in range(400)]
    worse, better = ([level < reach for level in hard] for reach in (0.60, 0.64))
    one, other = fed("box_accuracy", better), fed("box_accuracy", worse)
    gap = one.difference(other)
    assert one.compute()["low"] < other.compute()["high"]  # the intervals overlap
    assert 0 < gap.low < gap.value < gap.high
    assert gap.value == pytest.approx(one.compute()["box_accuracy"] - other.compute()["box_accuracy"])
    assert gap.count == 400
    back = other.difference(one)
    assert (back.value, back.low, back.high) == pytest.approx((-gap.value, -gap.high, -gap.low), abs=1e-3)
    unseen = wilson(0.0, 400)[1]  # 0.0095: what 400 questions without a difference cannot exclude
    assert one.difference(one) == Difference(0, -unseen, unseen, 400)


def test_other_questions_cannot_be_compared() -> None:
    with pytest.raises(UsageError, match="did not answer the same questions"):
        fed("box_accuracy", [True, False]).difference(fed("box_accuracy", [True]))
    with pytest.raises(UsageError, match="did not answer the same questions"):
        fed("box_accuracy", []).difference(fed("box_accuracy", []))
    with pytest.raises(UsageError, match="expected the same metric"):
        fed("box_accuracy", [True]).difference(fed("mean_iou", [True]))


def test_differences_pair_pictures() -> None:
    pairs = [(Group(1.0, 1.0), Group(0.0, 1.0)), (Group(0.0, 1.0), Group(1.0, 1.0))] * 50
    low, high = bootstrap_difference(pairs)
    assert low < 0 < high
    assert bootstrap_difference([(Group(1.0, 1.0), Group(0.0, 1.0))] * 10)[1] == 1
    assert bootstrap_difference([(Group(1.0, 1.0), Group(0.0, 1.0))] * 10)[0] < 0.5


EXAMPLES = [
    (name, dict(example)) for name in registry.names("metrics") for example in registry.spec("metrics", name).examples
]


def half(name: str, config: dict[str, Any], start: int) -> Any:
    """What one process of two scores."""
    metric = make(name, **config)
    turns = [(turn, sample) for sample in fakes.samples() for turn in sample.turns]
    for number, (turn, sample) in enumerate(turns):
        if number % 2 == start:
            metric.update(Prediction("") if number % 3 == 0 else fakes.perfect(turn), turn, sample)
    return metric


@pytest.mark.parametrize(("name", "config"), EXAMPLES, ids=str)
def test_metrics_travel_between_processes(name: str, config: dict[str, Any]) -> None:
    first, second = (pickle.loads(pickle.dumps(half(name, config, start))) for start in (0, 1))
    there, back = pickle.loads(pickle.dumps(first)), pickle.loads(pickle.dumps(second))
    there.merge(second)
    back.merge(first)
    assert there.compute() == back.compute()  # in whichever order they come


SCRIPT = """
import pickle, runpy, sys
half = runpy.run_path(sys.argv[1])["half"]
names = ("box_accuracy", "pointing", "count_accuracy", "caption_f1")
sys.stdout.buffer.write(pickle.dumps([half(name, {}, int(sys.argv[2])) for name in names]))
"""


def test_two_processes_give_what_one_gives() -> None:
    running = [
        subprocess.Popen([sys.executable, "-c", SCRIPT, __file__, start], stdout=subprocess.PIPE) for start in "01"
    ]
    first, second = (pickle.loads(process.communicate(timeout=250)[0]) for process in running)
    for merged, other in zip(second, first, strict=True):
        merged.merge(other)
        alone = half(merged.name, {}, 0)
        alone.merge(half(merged.name, {}, 1))
        assert merged.compute() == alone.compute()
        assert merged.compute()["count"] > 0


GATHERING = """
import json, runpy, sys
import torch.distributed as dist
test, store, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
metric = runpy.run_path(test)["half"]("mean_iou", {}, rank)
parts = [None, None]
dist.all_gather_object(parts, metric)
whole = parts[0]
whole.merge(parts[1])
print(json.dumps(whole.compute()))
dist.destroy_process_group()
"""


def test_a_process_group_gathers_and_merges(tmp_path: Path) -> None:
    """Every process of a group ends with the scores of all."""
    running = [
        subprocess.Popen([sys.executable, "-c", GATHERING, __file__, tmp_path / "store", rank], stdout=subprocess.PIPE)
        for rank in "01"
    ]
    found = [json.loads(process.communicate(timeout=250)[0]) for process in running]
    alone = half("mean_iou", {}, 0)
    alone.merge(half("mean_iou", {}, 1))
    assert found == [alone.compute()] * 2
