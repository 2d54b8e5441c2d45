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
SWEEPS = ("figure6", "table4", "table5")


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
