"""Curves over the layers as PNG and SVG, from matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from fusionkit.analysis.figure import rendered
from fusionkit.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#2563eb", "#f97316", "#059669", "#9333ea", "#dc2626", "#0891b2", "#a16207", "#be185d")


@dataclass(frozen=True, slots=True)
class Curve:
    """One line with its interval; `chosen` are places to mark. `low` and `high` may hold None."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    chosen: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Panel:
    """Axes with curves."""

    title: str
    curves: Sequence[Curve]
    x_label: str
    y_label: str
    y_limits: tuple[float, float] | None = None
    lines: Mapping[float, str] = field(default_factory=dict)


def check_plots() -> None:
    """Raises UsageError when figures cannot be drawn, before anything is measured."""
    if find_spec("matplotlib") is None:
        raise UsageError("figures need matplotlib, which is not installed: pip install 'fusionkit[plots]'")


def draw(panels: Sequence[Panel]) -> dict[str, bytes]:
    """The panels side by side: `png` and `svg`. An encoder keeps its colour across panels."""
    labels = list(dict.fromkeys(curve.label for panel in panels for curve in panel.curves))
    colour = {label: COLOURS[place % len(COLOURS)] for place, label in enumerate(labels)}

    def paint(figure: Figure) -> None:
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            _draw_panel(axes, panel, colour)
        figure.legend(
            *_handles(figure, labels), loc="outside lower center", ncols=min(3, len(labels)), frameon=False, fontsize=9
        )

    return rendered((6.4 * len(panels), 4.8), paint)


def _draw_panel(axes: Any, panel: Panel, colour: Mapping[str, str]) -> None:
    for curve in panel.curves:
        tint = colour[curve.label]
        axes.plot(curve.x, curve.y, "-o", color=tint, label=curve.label, linewidth=1.6, markersize=3.5)
        if curve.low and None not in curve.low:
            axes.fill_between(curve.x, curve.low, curve.high, color=tint, alpha=0.18, linewidth=0)
        marked = [place for place in curve.chosen if place < len(curve.x)]
        axes.plot(
            [curve.x[place] for place in marked],
            [curve.y[place] for place in marked],
            "o",
            color=tint,
            markersize=9,
            markerfacecolor="none",
            markeredgewidth=1.6,
        )
    for height, text in panel.lines.items():
        axes.axhline(height, color="#94a3b8", linewidth=1, linestyle=":")
        axes.annotate(text, (1, height), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    axes.set(xlabel=panel.x_label, ylabel=panel.y_label, title=panel.title)
    if panel.y_limits is not None:
        axes.set_ylim(*panel.y_limits)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _handles(figure: Any, labels: Sequence[str]) -> tuple[list[Any], list[str]]:
    """One legend entry per label, from whichever panel has it first."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return [found[label] for label in labels], list(labels)
