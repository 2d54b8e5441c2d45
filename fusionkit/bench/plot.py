"""A run as a picture: which block costs what, how far each is from the limit, and what the alternatives cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fusionkit.bench.case import VISION
from fusionkit.bench.summary import OURS, best_limits, by_cost, noise_of, others_of, share_of_limit
from fusionkit.bench.table import threads
from fusionkit.errors import UsageError

BLUE, PALE, DARK, ORANGE, SAND, GREY, INK = "#2563eb", "#93c5fd", "#1e3a8a", "#f97316", "#fdba74", "#94a3b8", "#0f172a"
ALTERNATIVES = 34
"""Bars of alternatives at most; the dearest blocks' are drawn, and the title says how many are not."""

Row = Mapping[str, Any]
Rows = Sequence[Row]


def check_plot(path: Path) -> None:
    """Raises UsageError when pictures cannot be drawn there, before anything is measured."""
    if find_spec("matplotlib") is None:
        raise UsageError(f"--plot {path}: needs matplotlib, which is not installed (`pip install 'fusionkit[plots]'`)")
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise UsageError(f"--plot {path}: expected a name that ends in .png, .svg or .pdf")
    if not path.parent.is_dir():
        raise UsageError(f"--plot {path}: there is no folder {path.parent}")


def draw(rows: Rows, path: Path) -> None:
    """Write the picture. Raises UsageError if there is nothing to draw."""
    ours = [row for row in by_cost(rows) if row["ms"] is not None]
    if not ours:
        raise UsageError(f"--plot {path}: no block was measured, so there is nothing to draw")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = [(row, found) for row in ours if (found := others_of(row["address"], rows))]
    bars = min(ALTERNATIVES, sum(1 + len(found) for _, found in groups))
    height = max(6.0, 3.6 + 0.32 * len(ours), 1.6 + 0.3 * bars)
    figure = Figure(figsize=(15, height), dpi=100, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subfigures(1, 2)
    left, right = panels
    top, bottom = left.subplots(2, 1, height_ratios=(1.2 + 0.32 * len(ours), 3.4))
    _costs(top, ours, best_limits(rows))
    _roofline(bottom, ours, best_limits(rows))
    _ratios(right.subplots(), groups, rows)
    first = rows[0]
    figure.suptitle(
        f"{first['device']} ({threads(first)}) · {first['dtype']} · {first['mode']} · torch {first['torch']}",
        fontsize=10,
    )
    figure.savefig(path)


def _costs(axes: Any, ours: Rows, limits: tuple[float, float]) -> None:
    """Milliseconds of every block; dark: the least time that the limits allow."""
    for place, row in enumerate(ours):
        ms, share = row["ms"]["p50"], share_of_limit(row, limits)
        axes.barh(place, ms, color=PALE if row["address"] == VISION else BLUE)
        axes.plot([row["ms"]["p25"], row["ms"]["p75"]], [place, place], color=INK, linewidth=1.2)
        text = f" {ms / 1e3:.3g} s" if ms >= 1000 else f" {ms:.3g} ms"
        if share is not None:
            axes.barh(place, ms * min(share, 1.0), color=DARK, height=0.4)
            text += f", {100 * share:.0f} % of the limit"
        axes.annotate(text, (max(ms, row["ms"]["p75"]), place), va="center", fontsize=8)
    axes.set_yticks(range(len(ours)), [f"{_address(row)}  {n}" for n, row in enumerate(ours, 1)], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.45 * max(row["ms"]["p75"] for row in ours))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(
        xlabel="milliseconds (dark: the least that the limits of the run allow; black: quartiles)",
        title="Which block costs what",
    )


def _address(row: Row) -> str:
    return "vision (all of it, fused)" if row["address"] == VISION else str(row["address"])


def _roofline(axes: Any, ours: Rows, limits: tuple[float, float]) -> None:
    """Rate over intensity, our blocks by their number in the list above; those without products are left out."""
    flops_limit, bytes_limit = limits
    points = [(number, row) for number, row in enumerate(ours, 1) if row["flops"]]
    places = [row["flops"] / row["bytes_min"] for _, row in points] or [1.0]
    ridge = flops_limit / bytes_limit
    low, high = min(*places, ridge) / 3, max(*places, ridge) * 3
    limit = [min(flops_limit, x * bytes_limit) / 1e9 for x in (low, ridge, high)]
    axes.loglog([low, ridge, high], limit, color=INK)
    axes.annotate(f"{flops_limit / 1e9:.0f} GFLOP/s", (high, limit[-1]), ha="right", va="bottom", fontsize=8)
    axes.annotate(
        f"{bytes_limit / 1e9:.0f} GB/s", (low * 1.2, 1.2 * low * bytes_limit / 1e9), ha="left", va="bottom", fontsize=8
    )
    for (number, row), place in zip(points, places, strict=False):
        axes.plot(place, row["tflops"] * 1e3, "o", color=BLUE, markersize=13, alpha=0.85)
        axes.annotate(str(number), (place, row["tflops"] * 1e3), ha="center", va="center", color="white", fontsize=8)
    axes.set(
        xlabel="FLOP per byte, by formula",
        ylabel="GFLOP/s",
        title="How far from the limit (line: the best that the run saw)",
    )
    axes.grid(alpha=0.25)


def _ratios(axes: Any, groups: Sequence[tuple[Row, Rows]], rows: Rows) -> None:
    """Time over ours of every alternative, under the name of its block."""
    if not groups:
        axes.set_axis_off()
        axes.set_title("No alternative was measured")
        return
    place, labels, shown = 0, [], 0
    highest = max(row["ratio"]["p75"] for _, found in groups for row in found)
    for ours, found in groups:
        if place and place + len(found) >= ALTERNATIVES:
            break
        noise = noise_of(ours["address"], rows)
        labels.append((place, ours["address"] + (f" (noise ± {100 * noise:.0f} %)" if noise else ""), True))
        for row in found:
            place += 1
            ratio = row["ratio"]
            colour = GREY if row["variant"].startswith(OURS) else ORANGE if row["computes"] == row["block"] else SAND
            axes.barh(place, ratio["p50"] - 1, left=1, color=colour)
            axes.plot([ratio["p25"], ratio["p75"]], [place, place], color=INK, linewidth=1.2)
            text = f" {ratio['p50']:.3g}x" + (" (noise)" if abs(ratio["p50"] - 1) <= noise else "")
            axes.annotate(text, (max(1, ratio["p50"], ratio["p75"]), place), va="center", fontsize=8)
            labels.append((place, row["variant"].removeprefix(f"{OURS}_"), False))
            shown += 1
        place += 1
    axes.set_yticks([at for at, _, _ in labels], [text for _, text, _ in labels], fontsize=8)
    for tick, (_, _, heading) in zip(axes.get_yticklabels(), labels, strict=True):
        tick.set_fontweight("bold" if heading else "normal")
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.axvline(1, color=BLUE)
    if highest > 10:
        axes.set_xscale("log")
    axes.margins(x=0.14)
    axes.spines[["top", "right"]].set_visible(False)
    _legend(axes)
    left_out = sum(len(found) for _, found in groups) - shown
    more = f" ({left_out} more in the rows)" if left_out else ""
    axes.set_xlabel("time / ours, below 1 cheaper than ours (black: quartiles)")
    axes.set_title(f"What the alternatives cost{more}", pad=26)


def _legend(axes: Any) -> None:
    from matplotlib.patches import Patch

    meanings = {
        ORANGE: "the same function by others",
        SAND: "another function in its place",
        GREY: "ours, run otherwise",
    }
    axes.legend(
        handles=[Patch(color=colour, label=text) for colour, text in meanings.items()],
        fontsize=8,
        frameon=False,
        ncols=3,
        loc="lower center",
        bbox_to_anchor=(0.4, 1.0),
    )
