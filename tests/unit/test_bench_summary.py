"""A run on one screen: blocks by cost, limits that no block exceeds, alternatives that say what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fusionkit.bench.plot import draw
from fusionkit.bench.summary import alternatives, best_limits, by_cost, share_of_limit, summary, unmeasured
from fusionkit.bench.table import explanation
from fusionkit.errors import UsageError


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    stored = Path(__file__).parents[2] / "benchmarks" / "results" / "cpu" / "come_vl.jsonl"
    return [json.loads(line) for line in stored.read_text(encoding="utf-8").splitlines()]


def test_blocks_stand_by_cost_and_the_whole_after_its_parts(rows: list[dict[str, Any]]) -> None:
    ours = by_cost(rows)
    times = [row["ms"]["p50"] for row in ours if row["ms"] is not None]
    assert [row["address"] for row in ours][-2:] == ["vision", "language_model"]
    assert times[:-1] == sorted(times[:-1], reverse=True)
    assert len(summary(rows)) == len(ours)
    shares = [line[3] for line in summary(rows)]
    assert sum(int(share.removesuffix(" %")) for share in shares if share != "-") == pytest.approx(100, abs=3)


def test_no_block_is_beyond_the_best_limit_of_the_run(rows: list[dict[str, Any]]) -> None:
    limits = best_limits(rows)
    shares = [share_of_limit(row, limits) for row in by_cost(rows)]
    assert max(share for share in shares if share is not None) <= 1
    assert limits[0] >= max(row["ceil"]["tflops"] for row in rows) * 1e12
    assert share_of_limit(next(row for row in rows if row["status"] == "skip"), limits) is None


def test_alternatives_say_what_they_are(rows: list[dict[str, Any]]) -> None:
    lines = {line.partition(":")[0]: line for line in alternatives(rows)}
    assert "concat_linear* 0." in lines["fusion.align"]
    assert "gated_cross_attention*" in lines["fusion.align"]
    assert "x_transformers 1." in lines["fusion.align"]
    assert "torch_orthogonal 20" in lines["streams.semantic.steps.mix"]
    assert "layers_kept ~" in lines["vision"]
    text = "\n".join(explanation(rows, brief=True))
    assert "* computes another function" in text
    assert "1 thread)" in text or "1 thread," in text
    assert "where they differ, others used the machine" in text


def test_what_was_not_measured_is_said_once(rows: list[dict[str, Any]]) -> None:
    found = unmeasured(rows)
    assert sum(line.startswith("skip: language_model") for line in found) == 1
    assert any("torch_orthogonal: maps 1024 -> 1152 are not square" in line for line in found)


def test_the_picture_is_drawn_of_what_was_measured(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    draw(rows, tmp_path / "all.svg")
    text = (tmp_path / "all.svg").read_text(encoding="utf-8")
    assert text.count("<path") > 100
    one = [row for row in rows if row["address"] in ("before", "fusion.project")]
    draw(one, tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 10_000
    with pytest.raises(UsageError, match="no block was measured"):
        draw([row for row in rows if row["status"] != "ok"], tmp_path / "none.png")
