"""A run of several cases on one screen: a line for each, with what it costs and what the alternatives would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fusionkit.bench.case import VISION
from fusionkit.bench.table import milliseconds

SUMMARY = ("block", "type", "ms", "share", "GFLOP", "of limit", "peak MiB")
SUMMARY_NUMBERS = frozenset({"ms", "share", "GFLOP", "of limit", "peak MiB"})
OURS, CONTROL = "fusionkit", "fusionkit_again"
SHOWN = 6
"""Alternatives of a block that are named, the dearest first; all are in the stored rows and under --details."""

Row = Mapping[str, Any]


def by_cost(rows: Sequence[Row]) -> list[Row]:
    """Our row of every case, the dearest first; a whole vision side after its parts, what was not measured last."""
    ours = [row for row in rows if row["variant"] == OURS]
    return sorted(
        ours, key=lambda row: (row["ms"] is None, row["address"] == VISION, -row["ms"]["p50"] if row["ms"] else 0)
    )


def best_limits(rows: Sequence[Row]) -> tuple[float, float]:
    """FLOP and bytes per second that the machine showed in this run: in a limit measured anywhere, or in a block's products."""
    products = [row["ceil"]["tflops"] for row in rows] + [row["tflops"] or 0.0 for row in rows]
    copies = [row["ceil"]["gbps"] for row in rows] + [row["gbps"] or 0.0 for row in rows if row["block"] == "ceiling"]
    return max(products) * 1e12, max(copies) * 1e9


def share_of_limit(row: Row, limits: tuple[float, float]) -> float | None:
    """The least time at these limits over the time measured; None without a formula or a time."""
    if row["ms"] is None or row["roofline_frac"] is None:
        return None
    least = max(row["flops"] / limits[0], row["bytes_min"] / limits[1])
    return float(1e3 * least / row["ms"]["p50"])


def summary(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """One line for every case."""
    ours = by_cost(rows)
    whole = next((row for row in ours if row["address"] == VISION), None)
    # Beside a whole vision side, what stands after it (injectors, decoder) is no share of it.
    parts = [row for row in ours if row is not whole and row["address"].startswith(("streams.", "fusion."))]
    limits = best_limits(rows)
    total = sum(row["ms"]["p50"] for row in (parts if whole else ours) if row["ms"] is not None)
    return [
        (
            row["address"],
            row["block"].rpartition("/")[2] if row is not whole else "(all streams, fused)",
            row["status"] if row["ms"] is None else milliseconds(row["ms"]["p50"]),
            "-" if row["ms"] is None or (whole and row not in parts) else f"{100 * row['ms']['p50'] / total:.0f} %",
            "-" if not row["flops"] else f"{row['flops'] / 1e9:.3g}",
            "-" if (share := share_of_limit(row, limits)) is None else f"{100 * share:.0f} %",
            "-" if row["peak_mib"] is None else f"{row['peak_mib']:.1f}",
        )
        for row in ours
    ]


def alternatives(rows: Sequence[Row]) -> list[str]:
    """A line for every block that has some: the dearest first, `~` before what is within its noise."""
    lines = []
    for ours in by_cost(rows):
        address = ours["address"]
        noise, others = noise_of(address, rows), others_of(address, rows)
        named = [
            f"{_name(row)} {'~' if abs(row['ratio']['p50'] - 1) <= noise else ''}{row['ratio']['p50']:.3g}x"
            for row in others[:SHOWN]
        ]
        if named:
            more = f", {len(others) - SHOWN} more" if len(others) > SHOWN else ""
            lines.append(f"{address}: {', '.join(named)}{more}")
    return lines


def others_of(address: str, rows: Sequence[Row]) -> list[Row]:
    """The alternatives of a block that were timed, the dearest first."""
    found = [row for row in rows if row["address"] == address and row["ratio"] is not None]
    return sorted((row for row in found if row["variant"] != CONTROL), key=lambda row: -row["ratio"]["p50"])


def _name(row: Row) -> str:
    """The variant; a star says that it computes another function."""
    return str(row["variant"]).removeprefix(f"{OURS}_") + ("" if row["computes"] == row["block"] else "*")


def noise_of(address: str, rows: Sequence[Row]) -> float:
    """How far the block's second run was from its first, as a share."""
    ratios = [row["ratio"] for row in rows if row["address"] == address and row["variant"] == CONTROL]
    return max((abs(ratio["p50"] - 1) for ratio in ratios if ratio is not None), default=0.0)


def unmeasured(rows: Sequence[Row]) -> list[str]:
    """What failed or was skipped, with its reason, one a line; the second run only where the first went well."""
    gone = {row["address"] for row in rows if row["variant"] == OURS and row["status"] != "ok"}
    return [
        f"{row['status']}: {row['address']}{' ' + row['variant'] if row['variant'] else ''}: {row['reason']}"
        for row in rows
        if row["status"] != "ok" and not (row["variant"] == CONTROL and row["address"] in gone)
    ]
