"""`fusionkit analyze gates`: what a model has learned to let through, over training, and whether a part has died.

Learned weights of sums, gates as tanh γ, and, over pictures, how far connectors look and what closing a gate or a
stream changes (`reach`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionkit.analysis.gates_report import History, Measured, outcome
from fusionkit.analysis.outcome import Frame, Outcome
from fusionkit.analysis.partial import Partial
from fusionkit.analysis.photos import Photo
from fusionkit.analysis.reach import look
from fusionkit.analysis.running import Running
from fusionkit.analysis.stream import PARTIAL
from fusionkit.analysis.subjects import file_label, weights_digest
from fusionkit.errors import CheckpointError, UsageError
from fusionkit.geometry import Size
from fusionkit.model.checkpoint import find_checkpoint, load_checkpoint
from fusionkit.model.modeling import FusionVLM
from fusionkit.model.processing import FusionProcessor
from fusionkit.ops.learned import Gate, Weights, gates, weights
from fusionkit.sample import Provenance, Sample, Turn
from fusionkit.train.partial import LOG_FILE


def analyse(source: str, photos: Sequence[Photo], frame: Frame) -> Outcome:
    """Read a checkpoint, or the log of a run that is not finished yet (its `NAME.partial` folder, or `NAME`).

    Raises UsageError when there is neither, or pictures are given for a run without a checkpoint.
    """
    running = _unfinished(source)
    if running is not None:
        if photos:
            raise UsageError(f"{source}: is not finished; its gates can be read from its log, without pictures")
        history = read_history(running / LOG_FILE)
        if not history.steps:
            raise UsageError(f"{running / LOG_FILE}: has no gates or weights yet; look again after a few logged steps")
        last = history.values[-1]
        found = Measured(
            source,
            tuple(Gate(name, value) for name, value in last.items() if isinstance(value, float)),
            tuple(Weights(name, tuple(value)) for name, value in last.items() if not isinstance(value, float)),
            history,
        )
        return outcome(found, 0)
    model, processor = load_checkpoint(source)
    history = read_history(find_checkpoint(source) / LOG_FILE)
    reaches, changes = _look(source, model, processor, photos, frame)
    found = Measured(source, tuple(gates(model)), tuple(_named(model)), history, reaches, changes)
    return outcome(found, len(photos))


def _unfinished(source: str) -> Path | None:
    """The folder of a run that has no checkpoint yet."""
    path = Path(source)
    for folder in (path, path.with_name(f"{path.name}.partial")):
        if (folder / LOG_FILE).is_file() and not (path / "config.json").is_file():
            return folder
    return None


def _named(model: FusionVLM) -> Sequence[Weights]:
    """Weights with the names of what they weigh: a stream's layers, a connector's inputs."""
    layers = {
        node.address: tuple(f"layer {layer}" for layer in stream.layers)
        for stream in model.plan.streams.values()
        for node in stream.steps[:1]
    }
    return [
        Weights(each.address, each.values, names)
        if len(names := each.names or layers.get(each.address, ())) == len(each.values)
        else each
        for each in weights(model)
    ]


def read_history(log: Path) -> History:
    """The learned numbers of every logged step that has them; none when there is no log. Raises CheckpointError."""
    if not log.is_file():
        return History()
    steps, stages, values = [], [], []
    for number, line in enumerate(log.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            learned: Mapping[str, Any] = row.get("learned") or {}
        except (ValueError, AttributeError) as error:
            raise CheckpointError(f"{log}:{number}: not a row of a training log ({error})") from error
        if learned:
            steps.append(int(row["step"]))
            stages.append(str(row["stage"]))
            values.append(learned)
    return History(tuple(steps), tuple(stages), tuple(values))


def _look(
    source: str, model: FusionVLM, processor: FusionProcessor, photos: Sequence[Photo], frame: Frame
) -> tuple[dict[str, Any], dict[str, Running]]:
    """Means over pictures, from results kept picture by picture."""
    if not photos:
        return {}, {}
    model.to(frame.device)  # type: ignore[arg-type]
    settings = {"analysis": "gates", "checkpoint": source, "weights": weights_digest(model)}
    partial = Partial(frame.output / PARTIAL / f"gates-{file_label(source)}.jsonl", settings, fresh=frame.fresh)
    for done, photo in enumerate(photos, start=1):
        if not partial.has(photo):
            batch = processor.batch([_sample(photo)], 1, answers=False)
            reaches, changes = look(model, {name: _placed(value, frame.device) for name, value in batch.items()})
            partial.add(photo, {"reach": {k: v.as_data() for k, v in reaches.items()}, "change": changes})
        frame.progress(f"gates {file_label(source)}", done, len(photos))
    found: dict[str, Any] = {}
    removed: dict[str, Running] = {}
    for row in partial.values(photos):
        for name, reach in row["reach"].items():
            into = found.setdefault(name, _Means())
            into.add(reach)
        for name, change in row["change"].items():
            removed.setdefault(name, Running()).add(change)
    return {name: means.as_data() for name, means in found.items()}, removed


def _placed(value: Any, device: str) -> Any:
    return value.to(device) if hasattr(value, "to") else value


def _sample(photo: Photo) -> Sample:
    image = photo.open()
    return Sample(lambda: image, Size(*image.size), (Turn("describe the picture", ()),), Provenance(str(photo.path)))


@dataclass(slots=True)
class _Means:
    """Running means of the numbers of a `Reach`."""

    numbers: dict[str, list[Running]]

    def __init__(self) -> None:
        self.numbers = {}

    def add(self, reach: Mapping[str, Any]) -> None:
        for name, value in reach.items():
            values = value if isinstance(value, list) else [value]
            runs = self.numbers.setdefault(name, [Running() for _ in values])
            for run, number in zip(runs, values, strict=True):
                run.add(number)

    def as_data(self) -> dict[str, list[float]]:
        return {name: [run.mean for run in runs] for name, runs in self.numbers.items()}
