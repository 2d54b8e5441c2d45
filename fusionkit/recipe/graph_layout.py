"""Where the boxes and edges of a graph go: one column per stream, and below them rows of fusion steps.

Units: px, origin at the top left. A row holds the boxes of one rank; an edge that passes a row has a slot of its own
in it, so that it never runs through a box.
"""

from __future__ import annotations

from dataclasses import dataclass

from fusionkit.recipe.graph import TEXT, Box, Edge, Graph

BOX_WIDTH, LINE, HEAD = 290.0, 17.0, 30.0
GAP_X, GAP_Y, MARGIN = 56.0, 46.0, 32.0
PANEL = 14.0
"""How far a stream's panel reaches beyond its boxes."""

SLOT = 24.0
"""Width that a passing edge takes in a row."""


@dataclass(frozen=True, slots=True)
class PlacedBox:
    """A box with its top left corner and size."""

    box: Box
    x: float
    y: float
    width: float
    height: float

    @property
    def centre(self) -> float:
        return self.x + self.width / 2

    @property
    def bottom(self) -> float:
        return self.y + self.height


@dataclass(frozen=True, slots=True)
class PlacedEdge:
    """An edge as points to pass, from the bottom of one box to the top of another; vertical at every point."""

    edge: Edge
    points: tuple[tuple[float, float], ...]

    @property
    def label_place(self) -> tuple[float, float, str]:
        """Where the label stands, and which end of it: beside the arrow head, on the side the edge does not come from."""
        (from_x, _), (x, y) = self.points[-2:]
        return (x - 7, y - 9, "end") if from_x > x else (x + 7, y - 9, "start")


@dataclass(frozen=True, slots=True)
class Panel:
    """The background of a stream's column."""

    title: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Layout:
    """Everything placed, and the size of the whole."""

    title: str
    boxes: tuple[PlacedBox, ...]
    edges: tuple[PlacedEdge, ...]
    panels: tuple[Panel, ...]
    width: float
    height: float


def place(graph: Graph) -> Layout:
    """Place every box and edge."""
    rows = _rows(graph)
    centres = _centres(graph, rows)
    left = min(
        x - _width(graph, item) / 2 for row, items in enumerate(rows) for item in items for x in [centres[row, item]]
    )
    shift = MARGIN + PANEL - left
    tops, bottoms = _heights(graph, rows)
    boxes = {
        box.key: PlacedBox(
            box, centres[box.rank, box.key] + shift - BOX_WIDTH / 2, tops[box.rank], BOX_WIDTH, _height(box)
        )
        for box in graph.boxes
    }
    edges = [
        _route(edge, number, graph, boxes, centres, shift, tops, bottoms) for number, edge in enumerate(graph.edges)
    ]
    panels = [_panel(stream, boxes) for stream in graph.streams]
    width = max(box.x + box.width for box in boxes.values()) + MARGIN + PANEL
    height = max(box.bottom for box in boxes.values()) + MARGIN
    return Layout(graph.title, tuple(boxes.values()), tuple(edges), tuple(panels), width, height)


def _height(box: Box) -> float:
    return HEAD + LINE * len(box.lines) + 8


def _width(graph: Graph, item: str) -> float:
    return SLOT if item.startswith("edge ") else BOX_WIDTH


def _slot(number: int) -> str:
    """The name of an edge's slot in the rows it passes."""
    return f"edge {number}"


def _rows(graph: Graph) -> list[list[str]]:
    """What stands in each row: boxes, and slots of the edges that pass it."""
    ranks = {box.key: box.rank for box in graph.boxes}
    rows: list[list[str]] = [[] for _ in range(max(ranks.values()) + 1)]
    for box in graph.boxes:
        rows[box.rank].append(box.key)
    for number, edge in enumerate(graph.edges):
        for rank in range(ranks[edge.source] + 1, ranks[edge.target]):
            rows[rank].append(_slot(number))
    return rows


def _centres(graph: Graph, rows: list[list[str]]) -> dict[tuple[int, str], float]:
    """The x of everything: a stream and what comes out of it in its column, the rest packed below what it reads."""
    columns = {name: index * (BOX_WIDTH + GAP_X) for index, name in enumerate(graph.streams)}
    middle = sum(columns.values()) / len(columns)
    streams = {box.key: box.stream for box in graph.boxes}
    last = max(box.rank for box in graph.boxes if box.stream)
    centres: dict[tuple[int, str], float] = {}
    for rank, items in enumerate(rows):
        wishes = {item: _wish(graph, item, rank, centres, middle) for item in items}
        if 1 <= rank <= last:
            boxed = {streams.get(item) for item in items}
            for item in items:
                stream = streams.get(item) or streams[graph.edges[int(item.removeprefix("edge "))].source]
                # An edge that skips steps of its own stream passes beside their boxes.
                aside = item not in streams and stream in boxed
                centres[rank, item] = columns[stream] + ((BOX_WIDTH + PANEL) / 2 if aside else 0)
            continue
        ordered = sorted((item for item in items if item != TEXT), key=lambda item: wishes[item])
        total = sum(_width(graph, item) for item in ordered) + GAP_X * (len(ordered) - 1)
        x = sum(wishes[item] for item in ordered) / max(1, len(ordered)) - total / 2
        if TEXT in items:
            # The question stands at the left of what it joins, without moving that aside.
            centres[rank, TEXT] = x - GAP_X - BOX_WIDTH / 2
        for item in ordered:
            centres[rank, item] = x + _width(graph, item) / 2
            x += _width(graph, item) + GAP_X
    return centres


def _wish(graph: Graph, item: str, rank: int, centres: dict[tuple[int, str], float], middle: float) -> float:
    """Where an item would like to be: below the mean of what it reads."""
    if item.startswith("edge "):
        number = int(item.removeprefix("edge "))
        return _above(graph, number, rank, centres, middle)
    found = [
        _above(graph, number, rank, centres, middle)
        for number, edge in enumerate(graph.edges)
        if edge.target == item and edge.source != TEXT
    ]
    return sum(found) / len(found) if found else middle


def _above(graph: Graph, number: int, rank: int, centres: dict[tuple[int, str], float], middle: float) -> float:
    """The x that an edge has in the row above: its slot there, or the box it comes from."""
    source = graph.edges[number].source
    return centres.get((rank - 1, _slot(number)), centres.get((rank - 1, source), middle))


def _heights(graph: Graph, rows: list[list[str]]) -> tuple[list[float], list[float]]:
    """Top and bottom of every row; the title stands above the first, the streams' names above the second."""
    tallest = [0.0] * len(rows)
    for box in graph.boxes:
        tallest[box.rank] = max(tallest[box.rank], _height(box))
    tops, bottoms = [], []
    y = MARGIN + 34
    for rank, height in enumerate(tallest):
        y += 26 if rank == 1 else 0
        tops.append(y)
        bottoms.append(y + height)
        y += height + GAP_Y
    return tops, bottoms


def _route(
    edge: Edge,
    number: int,
    graph: Graph,
    boxes: dict[str, PlacedBox],
    centres: dict[tuple[int, str], float],
    shift: float,
    tops: list[float],
    bottoms: list[float],
) -> PlacedEdge:
    """From the bottom of the source through its slots to a port on top of the target."""
    source, target = boxes[edge.source], boxes[edge.target]
    points = [(source.centre, source.bottom)]
    for rank in range(source.box.rank + 1, target.box.rank):
        x = centres[rank, _slot(number)] + shift
        points += [(x, tops[rank]), (x, bottoms[rank])]
    arriving = [
        (centres.get((target.box.rank - 1, _slot(other)), boxes[each.source].centre - shift), other)
        for other, each in enumerate(graph.edges)
        if each.target == edge.target
    ]
    place = sorted(arriving).index(next(entry for entry in arriving if entry[1] == number))
    port = target.x + target.width * (place + 1) / (len(arriving) + 1)
    return PlacedEdge(edge, (*points, (port, target.y)))


def _panel(stream: str, boxes: dict[str, PlacedBox]) -> Panel:
    mine = [placed for placed in boxes.values() if placed.box.stream == stream]
    x, y = min(placed.x for placed in mine), min(placed.y for placed in mine)
    bottom = max(placed.bottom for placed in mine)
    return Panel(stream, x - PANEL, y - 30, BOX_WIDTH + 2 * PANEL, bottom - y + 30 + PANEL)
