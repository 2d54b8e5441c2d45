"""`fusionkit analyze entropy`: layer entropies of encoders over pictures, and which layers they suggest.

The equations are in `measures`. For each encoder a report is written that the `entropy` selector reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any

from torch import Tensor, nn

from fusionkit.analysis import stream
from fusionkit.analysis.curves import Curve, Panel, check_plots, draw
from fusionkit.analysis.measures import ENERGY, EQUATIONS, MEASURES, PATCH, measure_entropy
from fusionkit.analysis.outcome import Frame, Outcome, Table
from fusionkit.analysis.page import Figure, Section, page
from fusionkit.analysis.photos import Photo
from fusionkit.analysis.running import Running
from fusionkit.analysis.subjects import Subject
from fusionkit.analysis.suggest import Rule, Suggestion, directions, fragment, spans, suggest
from fusionkit.errors import UsageError

Summaries = Mapping[str, Mapping[int, Running]]
"""Measure -> layer -> mean over pictures."""

TITLES = {
    PATCH: "attention, patch to patch",
    "prefix_to_patch": "attention, class and registers to patch",
    ENERGY: "feature energy",
}


@dataclass(frozen=True, slots=True)
class Measured:
    """One encoder's curves; `missing` names layers without attention and why, `random` says it is not trained."""

    subject: Subject
    summaries: Summaries
    missing: Mapping[str, str]
    random: bool

    @property
    def largest(self) -> float:
        """log N."""
        return log(self.subject.info.grid.tokens)

    def relative_mean(self, measure: str) -> float:
        """Mean over the layers, as a share of log N."""
        means = [running.mean for running in self.summaries[measure].values()]
        return sum(means) / len(means) / (self.largest or 1.0)


def analyse(
    subjects: Sequence[Subject],
    photos: Sequence[Photo],
    frame: Frame,
    *,
    layers: str | None = None,
    measure: str | None = None,
    direction: Sequence[str] = (),
    rule: Rule | None = None,
) -> Outcome:
    """Measure every encoder, one after the other, and suggest layers.

    `measure` is what the suggestion and the selector's report go by: patch_to_patch where there is attention, else
    feature_energy. Raises UsageError when an encoder does not have it.
    """
    check_plots()
    # What was asked wrongly is said before anything is measured.
    directions(dict.fromkeys([subject.label for subject in subjects], 0.0), direction)
    asked = {subject.label: stream.parse_layers(layers, subject) for subject in subjects}
    measured = [_measure(subject, photos, asked[subject.label], frame) for subject in subjects]
    goes_by = {each.subject.label: _goes_by(each, measure) for each in measured}
    means = {each.subject.label: each.relative_mean(goes_by[each.subject.label]) for each in measured}
    wanted = directions(means, direction)
    reports = {each.subject.label: report(each, goes_by[each.subject.label]) for each in measured}
    chosen = {
        each.subject.label: suggest(each.subject, reports[each.subject.label], wanted[each.subject.label], rule)
        for each in measured
    }
    return _outcome(measured, reports, chosen, len(photos), frame)


def report(measured: Measured, measure: str) -> dict[str, Any]:
    """The report of one encoder as the `entropy` selector reads it, with more that it does not read."""
    subject = measured.subject
    return {
        "kind": "layer_entropy",
        "version": 1,
        "encoder": subject.source,
        "depth": subject.info.depth,
        "measure": measure,
        "equation": EQUATIONS[measure],
        "unit": "nats",
        "largest": measured.largest,
        "images": next(iter(measured.summaries[measure].values())).count,
        "layers": [
            {"layer": layer, "entropy": running.mean, **running.summary()}
            for layer, running in measured.summaries[measure].items()
        ],
        "other_measures": {
            name: [{"layer": layer, **running.summary()} for layer, running in layers.items()]
            for name, layers in measured.summaries.items()
            if name != measure
        },
        "without_attention": dict(measured.missing),
        "random_weights": measured.random,
    }


def summarise(values: Iterable[Mapping[str, Any]]) -> Summaries:
    """Means over pictures, from their stored results one by one."""
    found: dict[str, dict[int, Running]] = {}
    for row in values:
        for measure in MEASURES:
            for layer, value in row.get(measure, {}).items():
                found.setdefault(measure, {}).setdefault(int(layer), Running()).add(value)
    return {measure: dict(sorted(layers.items())) for measure, layers in found.items()}


def _measure(subject: Subject, photos: Sequence[Photo], layers: Sequence[int], frame: Frame) -> Measured:
    encoder = subject.open(frame.device)

    def work(encoder: nn.Module, pixels: Tensor) -> list[dict[str, Any]]:
        rows, missing = measure_entropy(encoder, subject.info, pixels, layers)
        reasons = {str(layer): reason for layer, reason in missing.items()}
        return [{**row, "missing": reasons} if reasons else row for row in rows]

    partial = stream.run("entropy", subject, encoder, photos, {"layers": list(layers)}, work, frame)
    missing: dict[str, str] = {}

    def rows() -> Iterable[Mapping[str, Any]]:
        for row in partial.values(photos):
            missing.update(row.get("missing", {}))
            yield row

    return Measured(subject, summarise(rows()), missing, subject.starts_random(encoder))


def _goes_by(measured: Measured, asked: str | None) -> str:
    if asked is None:
        # A curve with holes would compare some layers only: then all go by what all have.
        return PATCH if PATCH in measured.summaries and not measured.missing else ENERGY
    if asked not in measured.summaries:
        why = next(iter(measured.missing.values()), "it has no prefix tokens")
        raise UsageError(
            f"--measure {asked}: {measured.subject.label} does not have it ({why}); "
            f"it has {', '.join(measured.summaries)}"
        )
    return asked


# --------------------------------------------------------------------------------------------------------- output
def _outcome(
    measured: Sequence[Measured],
    reports: Mapping[str, Mapping[str, Any]],
    chosen: Mapping[str, Suggestion],
    images: int,
    frame: Frame,
) -> Outcome:
    figure = draw(_panels(measured, reports, chosen))
    files: dict[str, Any] = {"entropy.png": figure["png"], "entropy.svg": figure["svg"]}
    lines, fragments, tables, sections = [], [], [], []
    for each in measured:
        label, by = each.subject.label, reports[each.subject.label]["measure"]
        name = f"{label}.entropy.json"
        suggestion = chosen[label]
        text = fragment(each.subject, suggestion, str(frame.output / name))
        words = [f"{label}: read layers {spans(suggestion.layers)}: {suggestion.words}."]
        words += _about_attention(each, by)
        if each.random:
            words.append(
                f"{label}: its weights are random, so this is the curve of an encoder that has learned nothing."
            )
        files[name] = {**reports[label], "suggestion": _as_data(suggestion), "fragment": text}
        lines += words
        fragments.append(text)
        table = Table(f"{label}, nats (at most {each.largest:.4g})", _rows(each, suggestion))
        tables.append(table)
        sections.append(Section(label, words, tables=[table], code=text))
    lead = f"{images} picture{'s' * (images != 1)}; entropies in nats, mean and 95 % interval of the mean over pictures"
    overview = Section(
        "Entropy over depth",
        [
            "Low: the layer looks at, or puts its energy into, few places. High: many. 1 is log N, spread evenly. "
            "Rings mark the suggested layers.",
            *(f"{TITLES[measure]}: {EQUATIONS[measure]}" for measure in MEASURES),
        ],
        [Figure(figure["png"], "Layer entropies over relative depth, as shares of log N")],
    )
    files["entropy.html"] = page("Layer entropy", lead, [overview, *sections])
    data = {
        "analysis": "entropy",
        "images": images,
        "equations": EQUATIONS,
        "encoders": {each.subject.label: files[f"{each.subject.label}.entropy.json"] for each in measured},
    }
    files["entropy.json"] = data
    return Outcome(data, files, lines, tables, join_fragments(fragments))


def join_fragments(fragments: Sequence[str]) -> str:
    """One `streams:` over all."""
    return "\n".join([fragments[0], *(text.removeprefix("streams:\n") for text in fragments[1:])])


def _panels(
    measured: Sequence[Measured], reports: Mapping[str, Mapping[str, Any]], chosen: Mapping[str, Suggestion]
) -> list[Panel]:
    panels = []
    for measure in MEASURES:
        curves = [
            _curve(each, measure, chosen[each.subject.label].layers if goes_by == measure else ())
            for each in measured
            if measure in each.summaries
            for goes_by in [reports[each.subject.label]["measure"]]
        ]
        if curves:
            panels.append(Panel(TITLES[measure], curves, "layer / depth", "entropy / log N"))
    return panels


def _curve(each: Measured, measure: str, chosen: Sequence[int]) -> Curve:
    layers, scale = each.summaries[measure], each.largest or 1.0
    halves = [running.half_width for running in layers.values()]
    means = [running.mean for running in layers.values()]
    return Curve(
        each.subject.label,
        [layer / each.subject.info.depth for layer in layers],
        [mean / scale for mean in means],
        [None if half is None else (mean - half) / scale for mean, half in zip(means, halves, strict=True)],
        [None if half is None else (mean + half) / scale for mean, half in zip(means, halves, strict=True)],
        [place for place, layer in enumerate(layers) if layer in chosen],
    )


def _rows(each: Measured, suggestion: Suggestion) -> list[dict[str, object]]:
    layers = sorted({layer for found in each.summaries.values() for layer in found})
    rows = []
    for layer in layers:
        row: dict[str, object] = {"layer": layer, "suggested": "yes" if layer in suggestion.layers else ""}
        for measure, found in each.summaries.items():
            running = found.get(layer)
            row[measure] = None if running is None else running.mean
            row[f"{measure} ±"] = None if running is None else running.half_width
        rows.append(row)
    return rows


def _about_attention(each: Measured, by: str) -> list[str]:
    if not each.missing:
        return []
    layers = spans(sorted(int(layer) for layer in each.missing))
    reasons = "; ".join(sorted(set(each.missing.values())))
    return [
        f"{each.subject.label}: no attention to measure at layers {layers} ({reasons}); goes by {by.replace('_', '-')}."
    ]


def _as_data(suggestion: Suggestion) -> dict[str, Any]:
    return {
        "layers": list(suggestion.layers),
        "direction": suggestion.direction,
        "rule": dict(suggestion.rule),
        "words": suggestion.words,
    }
