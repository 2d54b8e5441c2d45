"""The report of `fusionkit analyze gates`: warnings in words, tables, and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import tanh
from typing import Any

from fusionkit.analysis.curves import Curve, Panel, check_plots, draw
from fusionkit.analysis.outcome import Outcome, Table
from fusionkit.analysis.page import Figure, Section, page
from fusionkit.analysis.reach import RINGS
from fusionkit.analysis.running import Running
from fusionkit.ops.learned import Gate, Weights

SHUT = 0.01
"""A gate that lets through less than this share, or a removal that changes less, has died."""

ALONE = 0.95
"""A weight above this leaves the others nothing."""


@dataclass(frozen=True, slots=True)
class History:
    """Learned numbers by logged step: a float for a gate's value, a list for weights."""

    steps: tuple[int, ...] = ()
    stages: tuple[str, ...] = ()
    values: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Measured:
    """All that is known of one model; `reaches` and `changes` need pictures."""

    source: str
    gates: tuple[Gate, ...]
    weights: tuple[Weights, ...]
    history: History = field(default_factory=History)
    reaches: Mapping[str, Mapping[str, list[float]]] = field(default_factory=dict)
    changes: Mapping[str, Running] = field(default_factory=dict)


def warnings(found: Measured) -> list[str]:
    """What looks like a collapse, each with what it means and what to do."""
    told = [
        f"{gate.address}: the gate is shut (tanh γ = {gate.opening:.2g}): next to nothing of what it guards comes "
        "through; was it trained, and does its start leave it a gradient (gate_init above 0)?"
        for gate in found.gates
        if abs(gate.opening) < SHUT
    ]
    for each in found.weights:
        if len(each.values) > 1 and max(each.values) > ALONE:
            place = each.values.index(max(each.values))
            name = each.names[place] if each.names else f"entry {place}"
            told.append(
                f"{each.address}: {name} has {max(each.values):.3f} of the weight: the other "
                f"{len(each.values) - 1} are read for nothing; drop them, or lower the weights' learning rate"
            )
    for name, change in found.changes.items():
        if change.mean < SHUT:
            kind, _, address = name.partition(" ")
            told.append(
                f"{address}: without this {kind} the fused tokens change by {change.mean:.2%} only: "
                "the model does without it"
            )
    return told


def outcome(found: Measured, images: int) -> Outcome:
    """Words, tables, figure and page."""
    check_plots()
    told, tables = warnings(found), _tables(found)
    panels = _panels(found)
    lines = [f"warning: {text}" for text in told] or [f"{found.source}: no sign of a collapse"]
    if not found.gates and not found.weights:
        lines.append(f"{found.source}: has no learned weights and no gates")
    if not found.history.steps:
        lines.append(
            "over training: there is no log, or one without gates and weights (`fusionkit train` writes them as `learned`)"
        )
    if not images:
        lines.append("give a folder of pictures to see how far connectors look and what each gate and stream changes")
    data = {
        "analysis": "gates",
        "checkpoint": found.source,
        "images": images,
        "warnings": told,
        "gates": {gate.address: {"value": gate.value, "tanh": gate.opening} for gate in found.gates},
        "weights": {each.address: {"names": list(each.names), "values": list(each.values)} for each in found.weights},
        "reach": {name: dict(reach) for name, reach in found.reaches.items()},
        "change": {name: change.summary() for name, change in found.changes.items()},
        "over_training": [
            {"stage": stage, "step": step, **values}
            for stage, step, values in zip(found.history.stages, found.history.steps, found.history.values, strict=True)
        ],
    }
    files: dict[str, Any] = {"gates.json": data}
    figures = []
    if panels:
        figure = draw(panels)
        files |= {"gates.png": figure["png"], "gates.svg": figure["svg"]}
        figures = [Figure(figure["png"], "; ".join(panel.title for panel in panels))]
    lead = f"{images} picture{'s' * (images != 1)}" if images else "learned numbers, without pictures"
    sections = [Section("In words", lines), Section("Numbers", figures=figures, tables=tables)]
    files["gates.html"] = page(f"Gates and weights of {found.source}", lead, sections)
    return Outcome(data, files, lines, tables)


def _tables(found: Measured) -> list[Table]:
    tables = [
        Table(
            "gates",
            [{"gate": gate.address, "γ": gate.value, "lets through (tanh γ)": gate.opening} for gate in found.gates],
        )
    ]
    for each in found.weights:
        names = each.names or tuple(f"entry {place}" for place in range(len(each.values)))
        rows: list[Mapping[str, object]] = [
            {"of": name, "weight": value, "even": 1 / len(names)}
            for name, value in zip(names, each.values, strict=True)
        ]
        tables.append(Table(f"weights of {each.address}", rows))
    if found.reaches:
        tables.append(Table("mean distance of attention, sides of the crop", _reach_rows(found)))
    if found.changes:
        rows = [
            {"without": name, "fused tokens change by": run.mean, "±": run.half_width}
            for name, run in found.changes.items()
        ]
        tables.append(Table("what removing changes, relative to the fused tokens' length", rows))
    return [table for table in tables if table.rows]


def _reach_rows(found: Measured) -> list[Mapping[str, object]]:
    return [
        {"connector": name, "head": head, "distance": distance, "if even": reach["even"][0]}
        for name, reach in found.reaches.items()
        for head, distance in enumerate(reach["heads"])
    ]


def _panels(found: Measured) -> list[Panel]:
    panels = []
    learned = [
        Curve(each.address, list(range(1, len(each.values) + 1)), list(each.values))
        for each in found.weights
        if len(each.values) > 1
    ]
    if learned:
        panels.append(Panel("learned weights", learned, "input, in order", "weight"))
    if found.reaches:
        middles = [(ring + 0.5) / RINGS * 2**0.5 for ring in range(RINGS)]
        curves = []
        for name, reach in found.reaches.items():
            curves.append(Curve(name, middles, reach["profile"]))
            curves.append(Curve(f"{name}, even", middles, reach["even_profile"]))
        panels.append(Panel("attention by distance", curves, "distance, sides of the crop", "share of attention"))
    if found.history.steps:
        panels += _over_training(found.history)
    return panels


def _over_training(history: History) -> list[Panel]:
    """Gates as tanh γ and the largest weight of each sum, by logged row: steps begin again with every stage."""
    names = sorted({name for values in history.values for name in values})
    opened, largest = [], []
    for name in names:
        places = [place for place, values in enumerate(history.values) if name in values]
        series: Sequence[Any] = [history.values[place][name] for place in places]
        if isinstance(series[0], list):
            if len(series[0]) > 1:
                largest.append(Curve(name, places, [max(values) for values in series]))
        else:
            opened.append(Curve(name, places, [tanh(value) for value in series]))
    panels = []
    if opened:
        panels.append(Panel("gates over training", opened, "logged row", "tanh γ"))
    if largest:
        panels.append(Panel("largest weight over training", largest, "logged row", "weight"))
    return panels
