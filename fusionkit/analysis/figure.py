"""A matplotlib figure as PNG and SVG."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def rendered(size: tuple[float, float], paint: Callable[[Figure], None]) -> dict[str, bytes]:
    """What `paint` draws on a white figure of `size` inches: `png` and `svg`.

    Fixed ids and no date: the same numbers give the same file. Text stays text, so it can be searched and read aloud.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "fusionkit", "svg.fonttype": "none"}):
        figure = Figure(figsize=size, dpi=120, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        paint(figure)
        found = {}
        for kind in ("png", "svg"):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
            found[kind] = buffer.getvalue()
        return found
