"""From a layer-entropy curve to the layers to read, in words and as lines of a recipe.

The paper reads SigLIP 2 everywhere because its entropy is high (it looks at many places: semantics) and DINOv3 only
late, where its entropy is low (it looks at few: space). So with several encoders the one with the highest mean gets
`high` and the others `low`; one alone gets `low`, as the selector's default is. `--direction` overrules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

import yaml

from fusionkit import registry
from fusionkit.analysis.subjects import Subject
from fusionkit.errors import ShapeError, UsageError
from fusionkit.model.parts import build_object

Rule = Mapping[str, Any]
"""`{"knee": True}`, `{"threshold": 4.2}` or `{"top_k": 6}`: options of the `entropy` selector."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """The layers the `entropy` selector will choose from a report, and why."""

    layers: tuple[int, ...]
    direction: str
    rule: Rule
    words: str


def directions(means: Mapping[str, float], asked: Sequence[str]) -> dict[str, str]:
    """`high` or `low` for each encoder; `means` are mean entropies over log N.

    `asked` holds `high`, `low` or `LABEL=high`. Raises UsageError for anything else.
    """
    highest = max(means, key=lambda label: means[label])
    chosen = {label: "high" if label == highest and len(means) > 1 else "low" for label in means}
    for word in asked:
        label, equals, direction = word.rpartition("=")
        if direction not in ("high", "low") or (equals and label not in means):
            raise UsageError(
                f"--direction {word}: expected high, low or LABEL=high, with LABEL one of {', '.join(means)}"
            )
        chosen.update(dict.fromkeys([label] if equals else means, direction))
    return chosen


def suggest(subject: Subject, report: Mapping[str, Any], direction: str, rule: Rule | None = None) -> Suggestion:
    """What the selector makes of a report under a rule.

    Without a rule it is the knee, if the curve has one that leaves at least a quarter of the layers and not all of
    them; else the half of the layers that lies farthest in the direction, and the words say so. Raises UsageError when
    a rule chooses nothing.
    """
    try:
        layers = _select(subject, report, direction, rule or {"knee": True})
    except ShapeError as error:
        if rule is not None:
            raise UsageError(f"{subject.label}: {error}") from error
        return _half(subject, report, direction, error.message)
    measured = len(report["layers"])
    if rule is None and not measured / 4 <= len(layers) < measured:
        return _half(subject, report, direction, _not_useful(layers, measured))
    rule = rule or {"knee": True}
    return Suggestion(layers, direction, rule, _words(layers, report, direction, rule))


def _not_useful(layers: Sequence[int], measured: int) -> str:
    if len(layers) == measured:
        return "the knee of the curve would leave nothing out"
    return f"the knee of the curve would choose layer{'s' * (len(layers) > 1)} {spans(layers)} only"


def _half(subject: Subject, report: Mapping[str, Any], direction: str, why: str) -> Suggestion:
    rule: Rule = {"top_k": max(1, len(report["layers"]) // 2)}
    layers = _select(subject, report, direction, rule)
    return Suggestion(layers, direction, rule, f"{_words(layers, report, direction, rule)}. Half of them, as {why}")


def fragment(subject: Subject, suggestion: Suggestion, report_file: str) -> str:
    """The lines of a recipe that select these layers by the report.

    For a stream of a recipe only `select` changes; a registered encoder gets a whole stream, with a mixer if several
    layers are read.
    """
    name = subject.stream or _stream_name(subject)
    select = {"type": "entropy", "report": report_file, "direction": suggestion.direction, **suggestion.rule}
    lines = ["streams:", f"  {name}:"]
    if not subject.stream:
        lines.append(f"    encoder: {_flow(subject.config)}")
    note = f"layers {spans(suggestion.layers)}: {suggestion.words}"
    lines += wrap(note, 116, initial_indent="    # ", subsequent_indent="    # ")
    lines.append(f"    select: {_flow(select)}")
    if not subject.stream and len(suggestion.layers) > 1:
        lines += ["    steps:", "      mix: {type: orthogonal}"]
    return "\n".join(lines)


def spans(layers: Sequence[int]) -> str:
    """Layers as a person writes them: `1-4, 7, 9-12`."""
    starts = [layer for layer in layers if layer - 1 not in layers]
    ends = [layer for layer in layers if layer + 1 not in layers]
    return ", ".join(
        str(first) if first == last else f"{first}-{last}" for first, last in zip(starts, ends, strict=True)
    )


def _select(subject: Subject, report: Mapping[str, Any], direction: str, rule: Rule) -> tuple[int, ...]:
    """Asked of the selector itself, so that what is suggested is what a recipe gets."""
    values = {"type": "entropy", "report": dict(report), "direction": direction, **rule}
    config = registry.spec("selectors", "entropy").config.model_validate(values)
    layers: tuple[int, ...] = build_object("selectors", config).layers(subject.info)
    return layers


def _words(layers: Sequence[int], report: Mapping[str, Any], direction: str, rule: Rule) -> str:
    values = {entry["layer"]: entry["entropy"] for entry in report["layers"]}
    chosen = [values[layer] for layer in layers]
    if "threshold" in rule:
        by = f"at {'least' if direction == 'high' else 'most'} {rule['threshold']:.4g} nats"
    elif "top_k" in rule:
        by = f"the {rule['top_k']} {direction}est of {len(values)}"
    else:
        edge = min(chosen) if direction == "high" else max(chosen)
        by = f"{direction}er than or at the knee of the curve, {edge:.4g} nats"
    meaning = (
        "spread over many places, as layers that say what is there are"
        if direction == "high"
        else "concentrated on few places, as layers that say where things are"
    )
    measure = report["measure"].replace("_", "-")
    first, *_, last = values.values() if len(values) > 1 else [*values.values()] * 2
    course = "falls" if last < first else "rises"
    words = (
        f"{by}; {measure} entropy {min(chosen):.3g} to {max(chosen):.3g} of at most {report['largest']:.3g}, {meaning}; "
        f"over the depth it {course} from {first:.3g} to {last:.3g}"
    )
    early = sum(layer <= report["depth"] / 2 for layer in layers)
    if direction == "low" and len(values) > 2 and 2 * early > len(layers):
        words += (
            ". Here low entropy stands early, in the paper's encoders late: compare with a probe before relying on it"
        )
    return words


def _stream_name(subject: Subject) -> str:
    kind = str(subject.config["type"]).rpartition(".")[2]
    return kind if kind not in ("steps", "encoder", "plan") else "stream"


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    return str(yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**9)).strip()
