"""Rows as a table for people, the same on a terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

COLUMNS = ("block", "variant", "ms", "IQR", "time / ours", "of limit", "peak MiB", "maps", "error", "note")
NUMBERS = frozenset({"ms", "IQR", "time / ours", "of limit", "peak MiB", "maps", "error"})


def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """One row of results; `-` where a row has no such number."""
    ms, ratio, error = row["ms"], row["ratio"], row["err"]
    note = "" if row["status"] == "ok" else f"{row['status']}: {row['reason']}"
    if row["block"] == "ceiling":
        rate = f"{row['tflops'] * 1e3:.1f} GFLOP/s" if row["tflops"] else f"{row['gbps']:.1f} GB/s"
        note = f"{rate}, {row['address']} the run"
    elif row["computes"] not in (None, row["block"]):
        note = note or "another function"
    share = row["roofline_frac"]
    return (
        row["address"] if row["block"] != "ceiling" else "(machine)",
        row["variant"] or "-",
        "-" if ms is None else milliseconds(ms["p50"]),
        "-" if ms is None else f"{milliseconds(ms['p25'])}-{milliseconds(ms['p75'])}",
        _ratio(ratio) if ratio is not None else "1" if row["variant"] == "fusionkit" and ms is not None else "-",
        "-" if share is None else f"{100 * share:.0f} %",
        "-" if row["peak_mib"] is None else f"{row['peak_mib']:.1f}",
        "-" if row["maps"] is None else str(row["maps"]),
        "-" if error is None else f"{error['rel']:.0e}",
        note,
    )


def milliseconds(ms: float) -> str:
    """Four digits, or all before the point."""
    return f"{ms:.0f}" if ms >= 1000 else f"{ms:.4g}"


def _ratio(ratio: Mapping[str, Any]) -> str:
    """Median and quartiles of the paired ratios."""
    return f"{ratio['p50']:.3g} ({ratio['p25']:.3g}-{ratio['p75']:.3g})"


def explanation(rows: Sequence[Mapping[str, Any]], *, brief: bool = False) -> list[str]:
    """What the columns mean, in lines that stand under the table; `brief` is for the summary's."""
    first = rows[0]
    meanings_of_share = (
        "of limit: least time for a block's products and bytes at the best limits that the run saw, in a limit measured or "
        "in a block, over its time"
        if brief
        else "of limit: least time for a block's products and bytes at the limits measured beside it, over its time; over "
        "100 %: all fits in the processor's cache, or others took the machine while the limits were measured"
    )
    meanings = [
        "time / ours: paired per round, median (quartiles); above 1 is slower than fusionkit",
        meanings_of_share,
        "peak: memory of one call above weights and inputs; maps: orthogonal maps evaluated in one call; "
        "error: norm-relative, against float64",
    ]
    if brief:
        meanings = [
            meanings_of_share,
            "alternatives: time / ours; ~ is within the noise of the block run twice; * computes another function; "
            "--details for a line of every variant",
        ]
    lines = [
        f"{first['device']} ({first['kind']}, {threads(first)}), torch {first['torch']}, {first['dtype']}, "
        f"mode {first['mode']}",
        f"limits measured in this run: {limits(rows)}",
        *meanings,
    ]
    if noise := [row["ratio"] for row in rows if row["variant"] == "fusionkit_again" and row["ratio"]]:
        spread = max(max(abs(ratio["p25"] - 1), abs(ratio["p75"] - 1), abs(ratio["p50"] - 1)) for ratio in noise)
        lines.append(f"noise: the same block run twice differs by up to {100 * spread:.0f} % (fusionkit_again)")
    return lines


def threads(row: Mapping[str, Any]) -> str:
    """`1 thread`, `2 threads`."""
    return f"{row['threads']} thread{'s' if row['threads'] != 1 else ''}"


def limits(rows: Sequence[Mapping[str, Any]]) -> str:
    """Those of the run and those beside each block: from the lowest to the highest."""
    own = [row for row in rows if row["block"] == "ceiling"]
    products, copies = (
        [row["ceil"][name] for row in rows] + [row[name] for row in own if row[name]] for name in ("tflops", "gbps")
    )
    return f"{_span([1e3 * value for value in products])} GFLOP/s (matrix product), {_span(copies)} GB/s (copy)" + (
        "; where they differ, others used the machine" if max(products) > 1.2 * min(products) else ""
    )


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} to {high}"


def markdown(columns: Sequence[str], lines: Iterable[Sequence[str]], right: Set[str]) -> str:
    """The table as GitHub shows it; columns named in `right` are aligned to the right."""
    found = ["| " + " | ".join(columns) + " |"]
    found.append("|" + "|".join("---:" if column in right else "---" for column in columns) + "|")
    found += ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join(found)
