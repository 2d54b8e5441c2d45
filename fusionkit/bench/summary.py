"""A run of several cases on one screen: a line for each, with what it costs and what the alternatives would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fusionkit.bench.case import VISION

SUMMARY = ("block", "type", "ms", "share", "GFLOP", "of limit", "peak MiB", "alternatives (time / ours)")
SUMMARY_NUMBERS = frozenset({"ms", "share", "GFLOP", "of limit", "peak MiB"})
OURS, CONTROL = "fusionkit", "fusionkit_again"
SHOWN = 4
"""Alternatives on a line, the dearest first; all are in the stored rows and under --details."""

Row = Mapping[str, Any]


def summary(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """One line for every case, in the order of the run."""
    ours = [row for row in rows if row["variant"] == OURS]
    whole = next((row for row in ours if row["address"] == VISION), None)
    # Beside a whole vision side, what stands after it (injectors, decoder) is no share of it.
    parts = [row for row in ours if row is not whole and row["address"].startswith(("streams.", "fusion."))]
    total = sum(row["ms"]["p50"] for row in (parts if whole else ours) if row["ms"] is not None)
    return [
        (
            row["address"],
            row["block"].rpartition("/")[2] if row is not whole else "(all streams, fused)",
            "-" if row["ms"] is None else f"{row['ms']['p50']:.4g}",
            "-" if row["ms"] is None or (whole and row not in parts) else f"{100 * row['ms']['p50'] / total:.0f} %",
            "-" if not row["flops"] else f"{row['flops'] / 1e9:.3g}",
            "-" if row["roofline_frac"] is None else f"{100 * row['roofline_frac']:.0f} %",
            "-" if row["peak_mib"] is None else f"{row['peak_mib']:.1f}",
            row["status"] if row["status"] != "ok" else _alternatives(row, rows),
        )
        for row in ours
    ]


def _alternatives(ours: Row, rows: Sequence[Row]) -> str:
    """The dearest first; a ratio within the noise of the block run twice is said to be equal."""
    case = [row for row in rows if row["address"] == ours["address"] and row["ratio"] is not None]
    noise = max((abs(row["ratio"]["p50"] - 1) for row in case if row["variant"] == CONTROL), default=0.0)
    others = [row for row in case if row["variant"] != CONTROL]
    others.sort(key=lambda row: -row["ratio"]["p50"])
    shown = [
        f"{row['variant'].removeprefix('fusionkit_')} {row['ratio']['p50']:.3g}x"
        + (" (noise)" if abs(row["ratio"]["p50"] - 1) <= noise else "")
        for row in others[:SHOWN]
    ]
    more = f", {len(others) - SHOWN} more" if len(others) > SHOWN else ""
    return (", ".join(shown) or "-") + more


def unmeasured(rows: Sequence[Row]) -> list[str]:
    """What failed or was skipped, with its reason, one a line."""
    return [
        f"{row['status']}: {row['address']}{' ' + row['variant'] if row['variant'] else ''}: {row['reason']}"
        for row in rows
        if row["status"] != "ok"
    ]
