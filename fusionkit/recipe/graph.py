"""A plan as a graph of boxes and edges, and that graph as Mermaid text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fusionkit.plugin import EncoderInfo
from fusionkit.recipe.plan_table import grid_text, layer_ranges, scaled
from fusionkit.recipe.plan_types import ENCODER, Node, Plan, StreamPlan
from fusionkit.recipe.plan_wiring import acts_inside

PICTURE, TEXT, ANSWER = "picture", "text", "answer"
"""Boxes that are no blocks: what goes in and what comes out."""


@dataclass(frozen=True, slots=True)
class Box:
    """One box: a heading, a few lines, what kind it is (its family), its row, and the stream it belongs to."""

    key: str
    title: str
    subtitle: str
    lines: tuple[str, ...]
    kind: str
    rank: int
    stream: str = ""


@dataclass(frozen=True, slots=True)
class Edge:
    """Tokens that go from one box to another, labelled where the reader has several inputs."""

    source: str
    target: str
    label: str = ""


@dataclass(frozen=True, slots=True)
class Graph:
    """All boxes, top to bottom, and all edges; `streams` are the names of the columns."""

    title: str
    boxes: tuple[Box, ...]
    edges: tuple[Edge, ...]
    streams: tuple[str, ...]


def graph_of(plan: Plan) -> Graph:
    """The graph of a plan: picture, streams, fusion, injectors, language model, answer."""
    boxes = [Box(PICTURE, "picture", _cropper(plan), tuple(_crop_lines(plan)), PICTURE, 0)]
    edges: list[Edge] = []
    outputs: dict[str, str] = {}
    ranks: dict[str, int] = {}
    for stream in plan.streams.values():
        boxes += _stream_boxes(stream)
        edges += _stream_edges(stream)
        outputs[stream.name] = stream.nodes[-1].address
        ranks[stream.name] = max(len(each.nodes) for each in plan.streams.values())
    for node in plan.fusion:
        ranks[node.name] = 1 + max(ranks[_base(source)] for source in node.sources.values())
        boxes.append(_box(node, ranks[node.name]))
        edges += _edges(node, outputs)
        outputs[node.name] = node.address
    # The question stands in the row above the injectors, and never beside a stream.
    rank = max(ranks.values()) + (0 if plan.fusion else 1)
    last = outputs[_base(plan.visual_source)]
    if plan.language_model_node is not None:
        boxes.append(_text_box(plan, rank))
        rank += 1
        placing = next(node for node in plan.injectors if not acts_inside(node.config))
        edges.append(Edge(TEXT, placing.address))
        for node in plan.injectors:
            boxes.append(_box(node, rank))
            rank += 1
            if acts_inside(node.config):
                edges += _edges(node, outputs)
                edges.append(Edge(node.address, plan.language_model_node.address))
            else:
                edges.append(Edge(last, node.address))
                last = node.address
        boxes.append(_decoder_box(plan, plan.language_model_node, rank))
        edges.append(Edge(last, plan.language_model_node.address))
        last, rank = plan.language_model_node.address, rank + 1
        box_tokenizer = plan.recipe.box_tokenizer
        writes = "text" if box_tokenizer is None else f"text and boxes: {box_tokenizer.type}"
        boxes.append(Box(ANSWER, "answer", "", (writes,), ANSWER, rank))
        edges.append(Edge(last, ANSWER))
    title = f"{plan.recipe.name}: {scaled(plan.parameters)} parameters"
    return Graph(title, tuple(boxes), tuple(edges), tuple(plan.streams))


def mermaid(graph: Graph) -> str:
    """The graph as a Mermaid flowchart, for Markdown pages."""
    names = {box.key: f"n{index}" for index, box in enumerate(graph.boxes)}
    lines = ["flowchart TD"]
    for stream in ("", *graph.streams):
        indent = "  " if not stream else "    "
        if stream:
            lines.append(f'  subgraph s_{stream}["{_escaped(stream)}"]')
        for box in graph.boxes:
            if box.stream == stream:
                head = f"<b>{_escaped(box.title)}</b>" + (f" {_escaped(box.subtitle)}" if box.subtitle else "")
                text = "<br/>".join([head, *map(_escaped, box.lines)])
                lines.append(f'{indent}{names[box.key]}["{text}"]:::{box.kind}')
        if stream:
            lines.append("  end")
    for edge in graph.edges:
        arrow = f"-->|{_escaped(edge.label)}|" if edge.label else "-->"
        lines.append(f"  {names[edge.source]} {arrow} {names[edge.target]}")
    lines += [
        f"  classDef {kind} fill:{fill},stroke:{stroke},color:#1f2937" for kind, (fill, stroke) in COLOURS.items()
    ]
    return "\n".join(lines) + "\n"


COLOURS = {
    PICTURE: ("#f8fafc", "#64748b"),
    TEXT: ("#f8fafc", "#64748b"),
    ANSWER: ("#f8fafc", "#64748b"),
    "encoders": ("#eff6ff", "#2563eb"),
    "mixers": ("#f5f3ff", "#7c3aed"),
    "adapters": ("#f0fdfa", "#0d9488"),
    "poolers": ("#fffbeb", "#d97706"),
    "connectors": ("#fff1f2", "#e11d48"),
    "injectors": ("#f7fee7", "#65a30d"),
    "language_models": ("#ecfdf5", "#059669"),
}
"""Fill and line of each kind of box."""


def _stream_boxes(stream: StreamPlan) -> Iterator[Box]:
    info = stream.info
    height, width = info.input_size
    layers = f"layer{'s' if len(stream.layers) > 1 else ''} {layer_ranges(stream.layers)} of {info.depth}"
    lines = (
        *([info.name] if info.name != stream.encoder.type else []),
        f"{width}x{height} px, {layers}",
        *_cost_lines(stream.encoder),
    )
    yield Box(stream.encoder.address, ENCODER, stream.encoder.type, lines, "encoders", 1, stream.name)
    for number, node in enumerate(stream.steps, start=2):
        yield _box(node, number, stream.name)


def _stream_edges(stream: StreamPlan) -> Iterator[Edge]:
    yield Edge(PICTURE, stream.encoder.address)
    outputs = {ENCODER: stream.encoder.address}
    for node in stream.steps:
        yield from _edges(node, outputs)
        outputs[node.name] = node.address


def _edges(node: Node, outputs: dict[str, str]) -> Iterator[Edge]:
    for argument, source in node.sources.items():
        label = "" if argument in ("input", source.replace(".", "_")) else argument
        extra = source.partition(".")[2]
        yield Edge(outputs[_base(source)], node.address, " ".join(filter(None, (label, extra and f"({extra})"))))


def _box(node: Node, rank: int, stream: str = "") -> Box:
    return Box(node.address, node.name, node.type, tuple(_cost_lines(node)), node.family, rank, stream)


def _cost_lines(node: Node) -> Iterator[str]:
    spec = node.output
    yield f"{grid_text(spec)} tokens of width {spec.width}"
    yield f"{scaled(node.params)} parameters" if node.params else "no parameters"


def _decoder_box(plan: Plan, node: Node, rank: int) -> Box:
    info = node.site.info
    name = info.name if info is not None and not isinstance(info, EncoderInfo) else ""
    width = plan.language_model.width if plan.language_model is not None else 0
    lines = (name, f"width {width}, {plan.embedding_rows:,} rows", f"{scaled(node.params)} parameters")
    return Box(node.address, "language model", node.type, lines, node.family, rank)


def _text_box(plan: Plan, rank: int) -> Box:
    count = len(plan.new_tokens)
    added = f"{count:,} new token{'s' if count > 1 else ''}" if count else "no new tokens"
    return Box(TEXT, "question", "", (added,), TEXT, rank)


def _cropper(plan: Plan) -> str:
    return plan.recipe.cropper.type if plan.recipe.cropper is not None else ""


def _crop_lines(plan: Plan) -> Iterator[str]:
    if plan.layouts is not None:
        largest = plan.largest_layout
        crops = "1 crop" if largest.crops == 1 else f"up to {largest.crops} crops"
        yield f"{crops}, {largest.tokens:,} tokens"


def _base(source: str) -> str:
    return source.partition(".")[0]


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")
