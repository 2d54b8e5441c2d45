"""A run as a picture: every block under the roofline, and how long each variant takes beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fusionkit.errors import UsageError

OURS, OTHERS, CONTROL = "#2563eb", "#f97316", "#94a3b8"
Rows = Sequence[Mapping[str, Any]]


def check_plot(path: Path) -> None:
    """Raises UsageError when pictures cannot be drawn there, before anything is measured."""
    if find_spec("matplotlib") is None:
        raise UsageError(f"--plot {path}: needs matplotlib, which is not installed (`pip install 'fusionkit[plots]'`)")
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise UsageError(f"--plot {path}: expected a name that ends in .png, .svg or .pdf")


def draw(rows: Rows, path: Path) -> None:
    """Write the picture. Raises UsageError if there is nothing to draw."""
    measured = [row for row in rows if row["ms"] is not None and row["block"] != "ceiling"]
    if not measured:
        raise UsageError(f"--plot {path}: no variant was measured, so there is nothing to draw")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bars = [row for row in measured if row["ratio"] is not None]
    figure = Figure(figsize=(14, max(4.5, 1.8 + 0.32 * len(bars))), dpi=120, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _roofline(left, measured)
    _ratios(right, bars)
    first = rows[0]
    figure.suptitle(f"{first['device']} · {first['dtype']} · {first['mode']} · torch {first['torch']}", fontsize=10)
    figure.savefig(path)


def _roofline(axes: Any, rows: Rows) -> None:
    """Rate over intensity; a block without products stands on the copy limit by its bytes, at the left edge."""
    flops_limit, bytes_limit = rows[0]["ceil"]["tflops"] * 1e12, rows[0]["ceil"]["gbps"] * 1e9
    with_products = [row for row in rows if row["flops"]]
    places = [row["flops"] / row["bytes_min"] for row in with_products] or [1.0]
    low, high = min(*places, flops_limit / bytes_limit) / 4, max(*places, flops_limit / bytes_limit) * 4
    line = [low, flops_limit / bytes_limit, high]
    axes.loglog(line, [min(flops_limit, x * bytes_limit) / 1e9 for x in line], color="#0f172a", label="measured limit")
    for row, place in zip(with_products, places, strict=False):
        ours = row["variant"] == "fusionkit"
        colour = OURS if row["variant"].startswith("fusionkit") else OTHERS
        axes.plot(place, row["tflops"] * 1e3, "o" if ours else "x", color=colour, markersize=7)
        if ours:
            text = f" {row['address']} {100 * row['roofline_frac']:.0f} %"
            axes.annotate(text, (place, row["tflops"] * 1e3), fontsize=7, va="top", rotation=-20)
    axes.set(xlabel="FLOP per byte, by formula", ylabel="GFLOP/s", title="How far from the limit (dots: fusionkit)")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3, which="both")


def _ratios(axes: Any, bars: Rows) -> None:
    """Time over fusionkit's, with quartiles."""
    if not bars:
        axes.set_axis_off()
        return
    several = len({row["address"] for row in bars}) > 1
    for place, row in enumerate(bars):
        ratio = row["ratio"]
        control = row["variant"].startswith("fusionkit")
        axes.barh(place, ratio["p50"], color=CONTROL if control else OTHERS)
        axes.plot([ratio["p25"], ratio["p75"]], [place, place], color="#0f172a", linewidth=1.5)
        axes.annotate(f" {ratio['p50']:.3g}x", (max(ratio["p50"], ratio["p75"]), place), va="center", fontsize=8)
    names = [f"{row['address']}: {row['variant']}" if several else row["variant"] for row in bars]
    axes.set_yticks(range(len(bars)), names, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1, color=OURS)
    if max(row["ratio"]["p50"] for row in bars) > 10:
        axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.set(xlabel="time / fusionkit's time (line: quartiles of paired rounds)", title="What the alternatives cost")
