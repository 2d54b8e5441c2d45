"""Graphs of plans: boxes in rows and columns that nothing overlaps, and pictures that say what the plan says."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from plan_recipe import loaded

from fusionkit.recipe import load_recipe
from fusionkit.recipe.graph import ANSWER, PICTURE, TEXT, Graph, graph_of, mermaid
from fusionkit.recipe.graph_layout import BOX_WIDTH, Layout, PlacedBox, place
from fusionkit.recipe.graph_svg import fitted, svg
from fusionkit.recipe.plan import plan

STREAM = {"encoder": {"type": "small_vit"}, "select": {"type": "last"}}
MIXED = {
    "encoder": {"type": "small_vit"},
    "select": {"type": "all"},
    "steps": {"mix": {"type": "softmax_sum"}, "thin": {"type": "linear"}, "shape": {"type": "mlp", "hidden": 8}},
}


def attention(query: str, memory: str) -> dict[str, Any]:
    return {"type": "rope_cross_attention", "query": query, "memory": memory, "heads": 4}


RECIPES: dict[str, dict[str, Any]] = {
    "one stream": {"streams": {"only": STREAM}},
    "one stream and a language model": {
        "streams": {"only": {**STREAM, "steps": {"project": {"type": "linear", "width": {"like": "language_model"}}}}},
        "injectors": {"visual": {"type": "replace"}},
        "language_model": {
            "type": "causal",
            "tokenizer": "builtin:tiny",
            "config": {
                "model_type": "llama",
                "hidden_size": 24,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "vocab_size": 512,
            },
        },
    },
    "one stream, pooled": {"streams": {"only": MIXED}, "fusion": {"pool": {"type": "average_pool"}}},
    "streams of unequal length": {
        "streams": {"short": STREAM, "long": MIXED, "middle": STREAM},
        "fusion": {"join": {"type": "concat", "inputs": ["short", "long", "middle"]}},
    },
    "steps that skip": {
        "streams": {"a": STREAM, "b": MIXED, "c": STREAM},
        "fusion": {
            "first": attention("a", "b"),
            "second": attention("first", "c"),
            "third": {"type": "concat", "inputs": ["second", "a"]},
            "fourth": attention("third", "b"),
            "last": {"type": "weighted_sum", "inputs": ["third", "fourth"]},
        },
    },
    "steps side by side": {
        "streams": {"a": STREAM, "b": STREAM},
        "fusion": {
            "left": attention("a", "b"),
            "right": attention("b", "a"),
            "sum": {"type": "weighted_sum", "inputs": ["left", "right", "b"]},
        },
    },
    "a stream's step that skips": {
        "streams": {
            "a": {**STREAM, "steps": {"x": {"type": "linear"}, "y": {"type": "linear"}, "z": attention("x", "y")}},
        },
    },
}


def graph(changes: dict[str, Any]) -> Graph:
    return graph_of(plan(load_recipe({"schema": 1, "name": "drawn", "cropper": {"type": "resize"}, **changes})))


@pytest.fixture
def pair(tmp_path: Path) -> Graph:
    return graph_of(plan(loaded(tmp_path)))


def test_boxes_from_picture_to_answer(pair: Graph) -> None:
    ranks = {box.key: box.rank for box in pair.boxes}
    assert ranks == {
        PICTURE: 0,
        "streams.semantic.encoder": 1,
        "streams.semantic.steps.mix": 2,
        "streams.spatial.encoder": 1,
        "streams.spatial.steps.mix": 2,
        "streams.spatial.steps.widen": 3,
        "fusion.align": 4,
        "fusion.pool": 5,
        "fusion.project": 6,
        TEXT: 6,
        "injectors.visual": 7,
        "language_model": 8,
        ANSWER: 9,
    }


def test_edges_carry_the_names_of_inputs(pair: Graph) -> None:
    labels = {(edge.source, edge.target): edge.label for edge in pair.edges}
    assert labels["streams.semantic.steps.mix", "fusion.align"] == "query"
    assert labels["streams.spatial.steps.widen", "fusion.align"] == "memory"
    assert labels["fusion.align", "fusion.pool"] == ""
    assert labels[TEXT, "injectors.visual"] == ""


def test_a_box_says_type_shape_and_parameters(pair: Graph) -> None:
    boxes = {box.key: box for box in pair.boxes}
    encoder = boxes["streams.spatial.encoder"]
    assert (encoder.title, encoder.subtitle) == ("encoder", "small_conv")
    assert encoder.lines[:2] == ("32x32 px, layers 1-2 of 2", "4x4 tokens of width 16")
    assert boxes["fusion.pool"].lines == ("4x4 tokens of width 24", "no parameters")
    assert boxes[ANSWER].lines == ("text and boxes: coordinate_bins",)


def overlap(one: PlacedBox, other: PlacedBox) -> bool:
    return (
        one.x < other.x + other.width and other.x < one.x + one.width and one.y < other.bottom and other.y < one.bottom
    )


def crossed(layout: Layout) -> list[tuple[str, str]]:
    """(edge, box) for every edge that passes a row inside one of its boxes."""
    found = []
    for edge in layout.edges:
        for (x, top), (_, bottom) in zip(edge.points[1:-1:2], edge.points[2:-1:2], strict=True):
            for placed in layout.boxes:
                if placed.x < x < placed.x + placed.width and placed.y < bottom and top < placed.bottom:
                    found.append((f"{edge.edge.source} -> {edge.edge.target}", placed.box.key))
    return found


@pytest.mark.parametrize("name", RECIPES)
def test_nothing_overlaps_and_no_edge_runs_through_a_box(name: str) -> None:
    layout = place(graph(RECIPES[name]))
    clashes = [(one.box.key, other.box.key) for one, other in combinations(layout.boxes, 2) if overlap(one, other)]
    assert clashes == []
    assert crossed(layout) == []


@pytest.mark.parametrize("name", RECIPES)
def test_everything_lies_inside_the_picture(name: str) -> None:
    layout = place(graph(RECIPES[name]))
    for placed in layout.boxes:
        assert 0 <= placed.x <= layout.width - placed.width
        assert 0 <= placed.y <= layout.height - placed.height
    for panel in layout.panels:
        assert panel.x >= 0
        assert panel.x + panel.width <= layout.width
        inside = [placed for placed in layout.boxes if placed.box.stream == panel.title]
        assert inside
        assert all(panel.x < placed.x and placed.bottom < panel.y + panel.height for placed in inside)


@pytest.mark.parametrize("name", RECIPES)
def test_edges_go_down_from_box_to_box(name: str) -> None:
    layout = place(graph(RECIPES[name]))
    boxes = {placed.box.key: placed for placed in layout.boxes}
    for edge in layout.edges:
        heights = [y for _, y in edge.points]
        assert heights == sorted(heights)
        assert edge.points[0] == (boxes[edge.edge.source].centre, boxes[edge.edge.source].bottom)
        x, y = edge.points[-1]
        target = boxes[edge.edge.target]
        assert target.x < x < target.x + target.width
        assert y == target.y


def test_inputs_arrive_at_ports_of_their_own() -> None:
    layout = place(graph(RECIPES["steps side by side"]))
    ports = [edge.points[-1] for edge in layout.edges]
    assert len(set(ports)) == len(ports)


def test_the_main_column_is_straight(pair: Graph) -> None:
    layout = place(pair)
    main = ("fusion.align", "fusion.pool", "fusion.project", "injectors.visual", "language_model", ANSWER)
    assert len({placed.x for placed in layout.boxes if placed.box.key in main}) == 1


def test_svg_is_xml_with_every_box_named(pair: Graph) -> None:
    root = ElementTree.fromstring(svg(place(pair)))
    space = {"s": "http://www.w3.org/2000/svg"}
    assert {title.text for title in root.findall("s:g/s:title", space)} == {box.key for box in pair.boxes}
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "rope_cross_attention" in texts
    assert "query" in texts


def test_names_are_escaped() -> None:
    drawn = graph({"streams": {"only": STREAM}})
    odd = Graph('<"a" & b>', drawn.boxes, drawn.edges, drawn.streams)
    assert ElementTree.fromstring(svg(place(odd))).findtext("{http://www.w3.org/2000/svg}title") == '<"a" & b>'


def test_text_that_would_not_fit_is_cut() -> None:
    assert fitted("short", 12, BOX_WIDTH) == "short"
    long = fitted("x" * 200, 12, BOX_WIDTH)
    assert long.endswith("x…")
    assert len(long) < 60


def test_mermaid(pair: Graph) -> None:
    lines = mermaid(pair).splitlines()
    assert lines[0] == "flowchart TD"
    assert '  subgraph s_semantic["semantic"]' in lines
    boxes = [line for line in lines if ":::" in line]
    assert len(boxes) == len(pair.boxes)
    assert sum("-->" in line for line in lines) == len(pair.edges)
    assert any("-->|query|" in line for line in lines)
    defined = {line.split()[1] for line in lines if line.startswith("  classDef")}
    assert {box.kind for box in pair.boxes} <= defined
