"""Square tables of numbers as pictures: PNG and SVG, from matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fusionkit.analysis.figure import rendered

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Heat:
    """Numbers in `low`..`high`, a row and a column each with its name."""

    title: str
    values: Sequence[Sequence[float]]
    rows: Sequence[str]
    columns: Sequence[str]
    x_label: str
    y_label: str
    low: float = 0.0
    high: float = 1.0


WRITTEN = 8
"""Cells are labelled with their number up to so many columns."""


def draw_matrices(heats: Sequence[Heat], per_row: int = 2) -> dict[str, bytes]:
    """The tables side by side, `per_row` a row: `png` and `svg`. Bright is high."""
    columns = min(per_row, len(heats))
    lines = -(-len(heats) // columns)

    def paint(figure: Figure) -> None:
        places = figure.subplots(lines, columns, squeeze=False).flatten()
        for axes, heat in zip(places, heats, strict=False):
            _draw_heat(figure, axes, heat)
        for axes in places[len(heats) :]:
            axes.set_axis_off()

    return rendered((5.4 * columns, 4.6 * lines), paint)


def _draw_heat(figure: Figure, axes: Any, heat: Heat) -> None:
    values = np.asarray(heat.values, float)
    image = axes.imshow(values, cmap="viridis", vmin=heat.low, vmax=heat.high, aspect="equal")
    axes.set(title=heat.title, xlabel=heat.x_label, ylabel=heat.y_label)
    axes.set_xticks(range(len(heat.columns)), heat.columns, fontsize=8)
    axes.set_yticks(range(len(heat.rows)), heat.rows, fontsize=8)
    if len(heat.columns) <= WRITTEN and len(heat.rows) <= WRITTEN:
        middle = (heat.low + heat.high) / 2
        for (row, column), value in np.ndenumerate(values):
            ink = "black" if value > middle else "white"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=8)
    figure.colorbar(image, ax=axes, shrink=0.8)
