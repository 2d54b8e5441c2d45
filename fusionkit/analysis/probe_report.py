"""The report of `fusionkit analyze probe`: curves, tables, words, and the lines of a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from fusionkit.analysis.annotated import Annotated
from fusionkit.analysis.curves import Curve, Panel, draw
from fusionkit.analysis.outcome import Outcome, Table
from fusionkit.analysis.page import Figure, Section, page
from fusionkit.analysis.probe_maths import FOUND, ON
from fusionkit.analysis.running import Running
from fusionkit.analysis.subjects import Subject
from fusionkit.analysis.suggest import spans

MEASURES = ("box", "iou", "point")
BLIND = "blind"
TASKS = {ON: "from a patch on the object", FOUND: "found by its labels"}
EXPLANATION = {
    "box": "share of objects whose box is met with IoU >= 0.5",
    "iou": "mean IoU of the boxes",
    "point": "distance of the box's centre from the object's, in sides of the picture",
    ON: "the patch is given: one on the object",
    FOUND: "the patch is found by the labels, for objects whose labels no other object in the picture has",
    BLIND: "a probe that sees no token: the mean box, from a patch on the object",
}

Summaries = Mapping[str, Mapping[int, Mapping[str, Running]]]
"""Task -> layer -> measure -> mean over held-out pictures."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One encoder's curves; `goes_by` is the task that says which layer is best."""

    subject: Subject
    layers: tuple[int, ...]
    trained_on: int
    held_out: int
    summaries: Summaries
    blind: Mapping[str, Running]

    @property
    def goes_by(self) -> str:
        return FOUND if FOUND in self.summaries else ON

    def best(self, measure: str) -> int:
        means = {layer: found[measure].mean for layer, found in self.summaries[self.goes_by].items()}
        return (min if measure == "point" else max)(means, key=means.__getitem__)

    def good(self) -> tuple[int, ...]:
        """Layers whose box score reaches into the best one's interval."""
        curve = {layer: found["box"] for layer, found in self.summaries[self.goes_by].items()}
        top = curve[self.best("box")]
        return tuple(layer for layer, each in curve.items() if each.mean >= top.mean - (top.half_width or 0.0))


def outcome(
    measured: Sequence[Measured], data: Annotated, entropy: Mapping[str, Mapping[int, float]], strength: float
) -> Outcome:
    figure = draw(_panels(measured, entropy))
    lines, tables, sections, encoders, fragments = [], [], [], {}, []
    for each in measured:
        label, text = each.subject.label, fragment(each)
        words, rows = _words(each), _rows(each, entropy.get(label, {}))
        table = Table(f"{label}: held-out grounding by layer", rows)
        lines.append(words)
        tables.append(table)
        fragments.append(text)
        sections.append(Section(label, [words], tables=[table], code=text))
        encoders[label] = _data(each, entropy.get(label, {}), text)
    first = measured[0]
    counts = f"trained on {first.trained_on} samples of {data.words}, measured on {first.held_out} others"
    about = Section(
        "Grounding by layer",
        [f"{name}: {text}." for name, text in EXPLANATION.items()],
        [Figure(figure["png"], "Held-out grounding of linear probes over relative depth; rings mark the best layer")],
    )
    report = {
        "analysis": "probe",
        "data": dict(data.config),
        "trained_on": first.trained_on,
        "held_out": first.held_out,
        "ridge": strength,
        "explanation": EXPLANATION,
        "encoders": encoders,
    }
    files: dict[str, Any] = {
        "probe.json": report,
        "probe.png": figure["png"],
        "probe.svg": figure["svg"],
        "probe.html": page("Linear probes", counts, [about, *sections]),
    }
    joined = "\n".join([fragments[0], *(text.removeprefix("streams:\n") for text in fragments[1:])])
    return Outcome(report, files, [*lines, f"{counts}."], tables, joined)


def _panels(measured: Sequence[Measured], entropy: Mapping[str, Mapping[int, float]]) -> list[Panel]:
    panels = []
    for task in (FOUND, ON):
        curves = [_curve(each, task, "box") for each in measured if task in each.summaries]
        if curves:
            blind = {measured[0].blind["box"].mean: "blind probe"} if task == ON else {}
            panels.append(Panel(f"box, {TASKS[task]}", curves, "layer / depth", "IoU >= 0.5", (0, 1), blind))
    task = measured[0].goes_by
    points = [_curve(each, task, "point") for each in measured if task in each.summaries]
    panels.append(Panel(f"point, {TASKS[task]}", points, "layer / depth", "distance / side (low is good)"))
    if entropy:
        curves = [
            Curve(each.subject.label, [layer / each.subject.info.depth for layer in curve], list(curve.values()))
            for each in measured
            if (curve := entropy.get(each.subject.label))
        ]
        panels.append(Panel("entropy", curves, "layer / depth", "entropy / log N"))
    return panels


def _curve(each: Measured, task: str, measure: str) -> Curve:
    layers = each.summaries[task]
    runs = [found[measure] for found in layers.values()]
    halves = [run.half_width for run in runs]
    best = [list(layers).index(each.best(measure))] if task == each.goes_by else []
    return Curve(
        each.subject.label,
        [layer / each.subject.info.depth for layer in layers],
        [run.mean for run in runs],
        [None if half is None else run.mean - half for run, half in zip(runs, halves, strict=True)],
        [None if half is None else run.mean + half for run, half in zip(runs, halves, strict=True)],
        best,
    )


def _rows(each: Measured, entropy: Mapping[int, float]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for layer in each.layers:
        row: dict[str, object] = {"layer": layer}
        for task in (FOUND, ON):
            for measure in MEASURES:
                if task in each.summaries:
                    row[f"{measure}, {'found' if task == FOUND else 'on it'}"] = each.summaries[task][layer][
                        measure
                    ].mean
        half = each.summaries[each.goes_by][layer]["box"].half_width
        row["box ±"] = half
        if entropy:
            row["entropy / log N"] = entropy.get(layer)
        rows.append(row)
    return rows


def _words(each: Measured) -> str:
    box, point = each.best("box"), each.best("point")
    curve = each.summaries[each.goes_by]
    return (
        f"{each.subject.label}: layer {box} grounds boxes best ({curve[box]['box'].mean:.3f} with IoU >= 0.5, "
        f"{TASKS[each.goes_by]}), layer {point} points (distance {curve[point]['point'].mean:.3f}); within the best "
        f"one's interval: layers {spans(each.good())}. A blind probe on the object meets {each.blind['box'].mean:.3f}."
    )


def fragment(each: Measured) -> str:
    """Lines of a recipe that read the layers that ground best."""
    subject, layers = each.subject, each.good()
    name = subject.stream or str(subject.config["type"]).rpartition(".")[2]
    lines = ["streams:", f"  {name}:"]
    if not subject.stream:
        lines.append(f"    encoder: {_flow(dict(subject.config))}")
    lines.append(f"    # by linear probes: the layers within the interval of the best, {each.best('box')}")
    lines.append(f"    select: {_flow({'type': 'list', 'layers': list(layers)})}")
    if not subject.stream and len(layers) > 1:
        lines += ["    steps:", "      mix: {type: orthogonal}"]
    return "\n".join(lines)


def _flow(value: Any) -> str:
    return str(yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**9)).strip()


def _data(each: Measured, entropy: Mapping[int, float], text: str) -> dict[str, Any]:
    return {
        "encoder": each.subject.source,
        "depth": each.subject.info.depth,
        "goes_by": each.goes_by,
        "layers": [
            {
                "layer": layer,
                **{
                    task: {measure: run.summary() for measure, run in layers[layer].items()}
                    for task, layers in each.summaries.items()
                },
                **({"entropy_share": entropy[layer]} if layer in entropy else {}),
            }
            for layer in each.layers
        ],
        BLIND: {measure: run.summary() for measure, run in each.blind.items()},
        "best": {measure: each.best(measure) for measure in MEASURES},
        "suggestion": list(each.good()),
        "fragment": text,
    }
