"""A placed graph as SVG text, written by hand: no library needed."""

from __future__ import annotations

from collections.abc import Iterator
from xml.sax.saxutils import escape, quoteattr

from fusionkit.recipe.graph import COLOURS
from fusionkit.recipe.graph_layout import BOX_WIDTH, HEAD, LINE, Layout, PlacedBox, PlacedEdge

FONT = "Inter, 'Segoe UI', 'DejaVu Sans', Helvetica, Arial, sans-serif"
INK, GREY, PALE = "#1f2937", "#6b7280", "#94a3b8"
CHARACTER = 0.56
"""Mean width of a character over the font size; text that would not fit by it is cut."""


def svg(layout: Layout) -> str:
    """The picture as a standalone SVG document on a white ground."""
    return "\n".join(_lines(layout)) + "\n"


def fitted(text: str, size: float, width: float) -> str:
    """The text, cut with an ellipsis where it would be wider than `width`."""
    most = int(width / (CHARACTER * size))
    return text if len(text) <= most else text[: most - 1] + "…"


def _lines(layout: Layout) -> Iterator[str]:
    width, height = f"{layout.width:.0f}", f"{layout.height:.0f}"
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="{escape(FONT)}">'
    )
    yield f"<title>{escape(layout.title)}</title>"
    yield '<rect width="100%" height="100%" fill="#ffffff"/>'
    yield (
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerUnits="userSpaceOnUse" markerWidth="9" markerHeight="9" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" fill="{PALE}"/></marker></defs>'
    )
    yield _text(layout.title, layout.width / 2, 38, 17, INK, weight=600, anchor="middle")
    for panel in layout.panels:
        yield (
            f'<rect x="{panel.x:.1f}" y="{panel.y:.1f}" width="{panel.width:.1f}" height="{panel.height:.1f}" rx="14" '
            'fill="#f1f5f9" stroke="#e2e8f0"/>'
        )
        yield _text(fitted(panel.title, 13, panel.width), panel.x + 14, panel.y + 20, 13, GREY, weight=600)
    for edge in layout.edges:
        yield _edge(edge)
    for edge in layout.edges:
        if edge.edge.label:
            x, y, anchor = edge.label_place
            yield _text(edge.edge.label, x, y, 11, GREY, anchor=anchor)
    for box in layout.boxes:
        yield from _box(box)
    yield "</svg>"


def _edge(edge: PlacedEdge) -> str:
    return f'<path d="{curve(edge)}" fill="none" stroke="{PALE}" stroke-width="1.6" marker-end="url(#arrow)"/>'


def curve(edge: PlacedEdge) -> str:
    """The edge as an SVG path: straight down where it can, else an S."""
    (x, y), *rest = edge.points
    path = f"M{x:.1f} {y:.1f}"
    for to_x, to_y in rest:
        if abs(to_x - x) < 0.5:
            path += f" L{to_x:.1f} {to_y:.1f}"
        else:
            bend = (to_y - y) / 2
            path += f" C{x:.1f} {y + bend:.1f} {to_x:.1f} {to_y - bend:.1f} {to_x:.1f} {to_y:.1f}"
        x, y = to_x, to_y
    return path


def _box(placed: PlacedBox) -> Iterator[str]:
    box = placed.box
    fill, line = COLOURS[box.kind]
    inner = BOX_WIDTH - 30
    yield f"<g><title>{escape(box.key)}</title>"
    yield (
        f'<rect x="{placed.x:.1f}" y="{placed.y:.1f}" width="{placed.width:.1f}" height="{placed.height:.1f}" rx="9" '
        f'fill="{fill}" stroke="{line}" stroke-width="1.3"/>'
    )
    yield (
        f'<rect x="{placed.x + 7:.1f}" y="{placed.y + 8:.1f}" width="4" height="{placed.height - 16:.1f}" rx="2" '
        f'fill="{line}"/>'
    )
    title = fitted(box.title, 14, inner)
    yield _text(title, placed.x + 20, placed.y + 22, 14, INK, weight=600)
    if box.subtitle:
        left = inner - len(title) * 14 * CHARACTER - 10
        yield _text(fitted(box.subtitle, 12, left), placed.x + placed.width - 10, placed.y + 22, 12, line, anchor="end")
    for number, text in enumerate(box.lines):
        y = placed.y + HEAD + LINE * (number + 0.75)
        yield _text(fitted(text, 12, inner), placed.x + 20, y, 12, GREY)
    yield "</g>"


def _text(text: str, x: float, y: float, size: float, colour: str, *, weight: int = 400, anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" fill={quoteattr(colour)} font-weight="{weight}" '
        f'text-anchor="{anchor}">{escape(text)}</text>'
    )
