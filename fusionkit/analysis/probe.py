"""`fusionkit analyze probe`: how well one layer's frozen tokens ground objects, by linear probes. See `probe_maths`.

Three of four samples train the probes (their normal equations are summed, see `sums`), every fourth is held out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fusionkit.analysis.annotated import Annotated, Scene, centres, scene
from fusionkit.analysis.capture import watch
from fusionkit.analysis.curves import check_plots
from fusionkit.analysis.outcome import Frame, Outcome
from fusionkit.analysis.partial import Partial
from fusionkit.analysis.photos import Photo, Reader, batches
from fusionkit.analysis.probe_maths import ON, Probe, constant_boxes, equations, on_objects
from fusionkit.analysis.probe_report import BLIND, MEASURES, Measured, Summaries, outcome
from fusionkit.analysis.running import Running
from fusionkit.analysis.stream import PARTIAL, parse_layers
from fusionkit.analysis.subjects import Subject, weights_digest
from fusionkit.analysis.sums import Sums
from fusionkit.errors import DataError, UsageError

HELD_OUT = 4
"""Every fourth sample is held out."""


def analyse(
    subjects: Sequence[Subject],
    data: Annotated,
    frame: Frame,
    *,
    layers: str | None = None,
    samples: int = 400,
    strength: float = 1e-3,
    entropy: Sequence[Path] = (),
) -> Outcome:
    """Probe every encoder, one after the other.

    Raises UsageError for a layer that is not there or an entropy report of none of these encoders, DataError when no
    sample has a box.
    """
    check_plots()
    items = data.items(samples)
    if len(items) < HELD_OUT:
        raise DataError(f"{data.words}: has {len(items)} samples; a probe needs at least {HELD_OUT}")
    curves = read_entropy(entropy, subjects)
    asked = {subject.label: parse_layers(layers, subject) for subject in subjects}
    measured = [_measure(subject, data, items, asked[subject.label], strength, frame) for subject in subjects]
    return outcome(measured, data, curves, strength)


def read_entropy(files: Sequence[Path], subjects: Sequence[Subject]) -> dict[str, dict[int, float]]:
    """Encoder label -> layer -> entropy as a share of log N, from reports of `analyze entropy`."""
    found: dict[str, dict[int, float]] = {}
    by_source = {subject.source: subject.label for subject in subjects}
    for file in files:
        try:
            report = json.loads(file.read_text(encoding="utf-8"))
            reports = list(report["encoders"].values()) if report.get("analysis") == "entropy" else [report]
            sources = {each["encoder"]: each for each in reports}
            for source, each in sources.items():
                if source in by_source:
                    curve = {entry["layer"]: entry["entropy"] / (each["largest"] or 1) for entry in each["layers"]}
                    found[by_source[source]] = curve
        except OSError as error:
            raise UsageError(f"--entropy {file}: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"--entropy {file}: not a report of `fusionkit analyze entropy`") from error
        if not sources.keys() & by_source.keys():
            raise UsageError(
                f"--entropy {file}: is of {', '.join(sources)}; the encoders here are {', '.join(by_source)}"
            )
    return found


# -------------------------------------------------------------------------------------------------------- measuring
def _measure(
    subject: Subject, data: Annotated, items: Sequence[Photo], layers: tuple[int, ...], strength: float, frame: Frame
) -> Measured:
    encoder = subject.open(frame.device)
    settings = {
        "analysis": "probe",
        "encoder": subject.source,
        "config": dict(subject.config),
        "weights": weights_digest(encoder),
        "data": dict(data.config),
        "layers": list(layers),
    }
    training = [item for place, item in enumerate(items) if place % HELD_OUT != HELD_OUT - 1]
    held_out = [item for place, item in enumerate(items) if place % HELD_OUT == HELD_OUT - 1]
    look = _Look(subject, encoder, data, layers, frame)
    sums = _train(look, training, settings)
    of_layers = {
        layer: {name.partition(" ")[2]: matrix for name, matrix in sums.items() if name.partition(" ")[0] == str(layer)}
        for layer in layers
    }
    probes = {layer: Probe.solve(found, strength) for layer, found in of_layers.items()}
    blind = constant_boxes(of_layers[layers[0]], look.centres)
    tested = {**settings, "ridge": strength, "trained on": len(training)}
    partial = _test(look, held_out, probes, blind, tested)
    summaries, of_blind = summarise(partial.values(held_out))
    if ON not in summaries:
        raise DataError(
            f"{data.words}: no held-out sample of {len(held_out)} has a box; take more samples (--samples) or other data"
        )
    return Measured(subject, layers, len(training), len(held_out), summaries, of_blind)


@dataclass(frozen=True, slots=True)
class _Look:
    """An encoder and the scenes it is shown."""

    subject: Subject
    encoder: nn.Module
    data: Annotated
    layers: tuple[int, ...]
    frame: Frame

    @property
    def centres(self) -> Tensor:
        return centres(self.subject.info.grid)

    def scenes(self, group: Sequence[Photo]) -> tuple[list[int], list[Scene], Tensor | None]:
        """Which of the group have boxes, their scenes and their pixels."""
        reader, places, scenes, images = Reader(self.subject.info), [], [], []
        for place, item in enumerate(group):
            sample = self.data.sample(item)
            found = scene(sample, self.subject.info.grid, self.data.labels)
            if found is not None and sample.open_image is not None:
                places.append(place)
                scenes.append(found)
                images.append(sample.open_image())
        return places, scenes, reader.pixels(images).to(self.frame.device) if images else None


def _train(look: _Look, training: Sequence[Photo], settings: Mapping[str, Any]) -> dict[str, Tensor]:
    label = look.subject.label
    path = look.frame.output / PARTIAL / f"probe-{label}.safetensors"
    sums = Sums(path, settings, training, fresh=look.frame.fresh)
    count = len(look.data.labels)

    def step(group: list[Photo]) -> None:
        _, scenes, pixels = look.scenes(group)
        parts: dict[str, Any] = {}

        def on_tokens(layer: int, x_BND: Tensor) -> None:
            for name, value in equations(x_BND, scenes, look.centres, count).items():
                parts[f"{layer} {name}"] = lambda value=value: value

        if pixels is not None:
            watch(look.encoder, look.subject.info, pixels, look.layers, on_tokens)
        sums.add(group, parts)

    sums.run(
        training,
        look.frame.batch,
        step,
        lambda done: look.frame.progress(f"probe {label}, training", done, len(training)),
    )
    if not sums.matrices:
        raise DataError(f"{look.data.words}: no sample of {len(training)} has a picture with a box to probe for")
    return sums.matrices


def _test(
    look: _Look, held_out: Sequence[Photo], probes: Mapping[int, Probe], blind_N4: Tensor, settings: Mapping[str, Any]
) -> Partial:
    label = look.subject.label
    partial = Partial(look.frame.output / PARTIAL / f"probe-{label}.jsonl", settings, fresh=look.frame.fresh)
    left = [item for item in held_out if not partial.has(item)]
    done = len(held_out) - len(left)
    look.frame.progress(f"probe {label}, held out", done, len(held_out))
    for group in batches(left, look.frame.batch):
        places, scenes, pixels = look.scenes(group)
        rows: list[dict[str, Any]] = [{} for _ in group]

        def on_tokens(layer: int, x_BND: Tensor, rows: Any = rows, places: Any = places, scenes: Any = scenes) -> None:
            for place, each, x_ND in zip(places, scenes, x_BND, strict=True):
                rows[place][str(layer)] = probes[layer].measure(x_ND, each, look.centres)

        if pixels is not None:
            watch(look.encoder, look.subject.info, pixels, look.layers, on_tokens)
        for place, each in zip(places, scenes, strict=True):
            rows[place][BLIND] = {ON: on_objects(blind_N4, each)}
        for item, row in zip(group, rows, strict=True):
            partial.add(item, row)
        done += len(group)
        look.frame.progress(f"probe {label}, held out", done, len(held_out))
    return partial


def summarise(rows: Any) -> tuple[Summaries, Mapping[str, Running]]:
    """Means over pictures, from their stored results one by one."""
    found: dict[str, dict[int, dict[str, Running]]] = {}
    blind = {measure: Running() for measure in MEASURES}
    for row in rows:
        for layer, tasks in row.items():
            for task, values in tasks.items():
                into = (
                    blind
                    if layer == BLIND
                    else found.setdefault(task, {}).setdefault(int(layer), {name: Running() for name in MEASURES})
                )
                for measure, value in zip(MEASURES, values, strict=True):
                    into[measure].add(value)
    return {task: dict(sorted(layers.items())) for task, layers in found.items()}, blind
