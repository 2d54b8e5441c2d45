"""A placed graph as a PNG, drawn with matplotlib; the same picture as the SVG."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path as File
from typing import Any

from fusionkit.errors import UsageError
from fusionkit.recipe.graph import COLOURS
from fusionkit.recipe.graph_layout import BOX_WIDTH, HEAD, LINE, Layout, PlacedBox, PlacedEdge
from fusionkit.recipe.graph_svg import CHARACTER, GREY, INK, PALE, fitted

POINTS = 0.75
"""Points in a px, as in CSS."""

SCALE = 2.0
"""Pixels of the PNG for a px of the layout."""


def write_png(layout: Layout, path: File) -> None:
    """Draw the layout; raises UsageError when matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise UsageError("PNG needs matplotlib, which is not installed (`pip install 'fusionkit[plots]'`, or use .svg)")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(layout.width / 96, layout.height / 96), dpi=96 * SCALE, facecolor="white")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, layout.width)
    axes.set_ylim(layout.height, 0)
    axes.axis("off")
    _text(axes, layout.title, layout.width / 2, 38, 17, INK, bold=True, anchor="center")
    for panel in layout.panels:
        _rounded(axes, panel.x, panel.y, panel.width, panel.height, 14, "#f1f5f9", "#e2e8f0")
        _text(axes, fitted(panel.title, 13, panel.width), panel.x + 14, panel.y + 20, 13, GREY, bold=True)
    for edge in layout.edges:
        _edge(axes, edge)
    for box in layout.boxes:
        _box(axes, box)
    figure.savefig(path, format="png")


def _edge(axes: Any, edge: PlacedEdge) -> None:
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    (x, y), *rest = edge.points
    vertices, codes = [(x, y)], [Path.MOVETO]
    for to_x, to_y in rest:
        bend = (to_y - y) / 2
        vertices += [(x, y + bend), (to_x, to_y - bend), (to_x, to_y)]
        codes += [Path.CURVE4] * 3
        x, y = to_x, to_y
    arrow = FancyArrowPatch(
        path=Path(vertices, codes), arrowstyle="-|>", mutation_scale=8, color=PALE, fill=False, linewidth=1.6 * POINTS
    )
    axes.add_patch(arrow)
    if edge.edge.label:
        left, top, anchor = edge.label_place
        _text(axes, edge.edge.label, left, top, 11, GREY, anchor="right" if anchor == "end" else "left")


def _box(axes: Any, placed: PlacedBox) -> None:
    box = placed.box
    fill, line = COLOURS[box.kind]
    inner = BOX_WIDTH - 30
    _rounded(axes, placed.x, placed.y, placed.width, placed.height, 9, fill, line)
    _rounded(axes, placed.x + 7, placed.y + 8, 4, placed.height - 16, 2, line, line)
    title = fitted(box.title, 14, inner)
    _text(axes, title, placed.x + 20, placed.y + 22, 14, INK, bold=True)
    left = inner - len(title) * 14 * CHARACTER - 10
    right = placed.x + placed.width - 10
    _text(axes, fitted(box.subtitle, 12, left), right, placed.y + 22, 12, line, anchor="right")
    for number, text in enumerate(box.lines):
        _text(axes, fitted(text, 12, inner), placed.x + 20, placed.y + HEAD + LINE * (number + 0.75), 12, GREY)


def _rounded(axes: Any, x: float, y: float, width: float, height: float, radius: float, fill: str, line: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    style = f"round,pad=0,rounding_size={radius}"
    axes.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=fill, edgecolor=line, linewidth=1.3 * POINTS)
    )


def _text(
    axes: Any, text: str, x: float, y: float, size: float, colour: str, *, bold: bool = False, anchor: str = "left"
) -> None:
    weight = "bold" if bold else "normal"
    # A dollar sign would start a formula.
    shown = text.replace("$", r"\$")
    axes.text(x, y, shown, fontsize=size * POINTS, color=colour, fontweight=weight, ha=anchor, va="baseline")
