"""The guide to sweeps says what the stored results say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fusionkit.sweep.grid import load_grid

ROOT = Path(__file__).resolve().parents[2]
STORED = ROOT / "benchmarks/results/cpu/sweeps"
GUIDE = (ROOT / "docs/sweeps.md").read_text(encoding="utf-8")
SWEEPS = ("figure6", "table4", "table5", "equal_budget")


def stored(name: str) -> dict[str, Any]:
    return json.loads((STORED / f"{name}.json").read_text(encoding="utf-8"))


def lines_of(row: dict[str, Any]) -> str:
    """A row as the guide writes it."""
    cells = (f"{value:,}" if isinstance(value, int) else str(value) for value in row.values())
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("name", SWEEPS)
def test_tables_are_the_stored_ones(name: str) -> None:
    results = stored(name)
    for row in (*results["table"], *results["differences"]):
        assert lines_of(row).removesuffix(" |") in GUIDE


@pytest.mark.parametrize("name", SWEEPS)
def test_stored_runs_are_all_that_the_shipped_sweep_asks_for(name: str) -> None:
    grid, results = load_grid(name), stored(name)
    made = {(run["variant"], run["seed"]) for run in results["runs"]}
    assert made == {(variant, seed) for variant in grid.variants for seed in grid.seeds}
    assert len(grid.seeds) >= 3


def test_why_intervals_are_wide() -> None:
    onset = stored("onset")
    assert f"over {onset['runs']} runs" in GUIDE
    assert f"the box accuracy is {onset['rank_correlation']:.2f}" in GUIDE
    assert f"{onset['rank_correlation_inside_variants']:.2f} among runs of one variant" in GUIDE
    assert f"for {100 * onset['variance_between_variants']:.0f} %" in GUIDE
    assert f"{100 * onset['variance_between_variants_by_chance']:.0f} % would be expected" in GUIDE


def test_what_more_steps_change() -> None:
    onset, runs = stored("onset_equal_budget"), stored("equal_budget")["runs"]
    assert f"all by step {max(run['onset'] for run in onset['each'])}" in GUIDE
    assert f"for {100 * onset['variance_between_variants']:.0f} % of the variance of the box accuracy (" in GUIDE
    assert f"({100 * onset['variance_between_variants_by_chance']:.0f} % by chance)" in GUIDE
    assert f"({onset['rank_correlation_inside_variants']:.2f})" in GUIDE
    for row in stored("equal_budget")["differences"]:
        outside = {
            key for key, value in row.items() if key != "difference" and abs(float(value[:5])) > float(value[-5:])
        }
        assert outside == ({"count_accuracy"} if "spatial" in row["difference"] else set())
    spread = {
        name: max(found) - min(found)
        for name in ("fused", "semantic_equal")
        if (found := [run["scores"]["box_accuracy"] for run in runs if run["variant"] == name])
    }
    text = " ".join(GUIDE.split())
    assert f"differs by {spread['fused']:.3f} between seeds" in text
    assert f"that of the semantic encoder by {spread['semantic_equal']:.3f}" in text


def test_how_many_differences_are_outside_their_intervals() -> None:
    """What the guide's summary counts."""
    values = [
        value.split(" ± ")
        for name in SWEEPS[:3]
        for row in stored(name)["differences"]
        for key, value in row.items()
        if key != "difference"
    ]
    assert f"{len(values)} differences" in " ".join(GUIDE.split())
    assert sum(abs(float(mean)) > float(half) for mean, half in values) == 1
