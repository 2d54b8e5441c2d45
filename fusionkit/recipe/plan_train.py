"""Check the addresses a recipe's training names against the parts of its model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from fusionkit.plugin import LanguageModelInfo, input_names
from fusionkit.recipe.planning import Planning, suggestion

if TYPE_CHECKING:
    from fusionkit.recipe.schema import Recipe


def check_train(planning: Planning, info: LanguageModelInfo | None) -> None:
    """Note every address in `trainable` and `learning_rates` that no part of the model has, and unknown streams."""
    train = planning.recipe.train
    if train is None:
        return
    _check_lora(planning)
    _check_packing(planning, info)
    parts = list(module_addresses(planning.recipe))
    # The heads that objectives own are no part of the model, but they learn, at a rate that may be given.
    heads = [f"objectives.{name}" for stage in train.stages.values() for name in stage.objectives]
    _check_addresses(planning, "train.learning_rates", train.learning_rates, [*parts, *heads], keyed=True)
    for name, stage in train.stages.items():
        address = f"train.stages.{name}"
        _check_addresses(planning, f"{address}.trainable", stage.trainable, parts, keyed=False)
        rates = stage.learning_rates or ()
        _check_addresses(planning, f"{address}.learning_rates", rates, [*parts, *heads], keyed=True)
        for objective, config in stage.objectives.items():
            for argument, source in input_names(config).items():
                place = f"{address}.objectives.{objective}.{argument}"
                _check_source(planning, place, source)


def _check_lora(planning: Planning) -> None:
    """Quantised weights do not learn: a stage that trains such a decoder needs low-rank updates of it."""
    train, decoder = planning.recipe.train, planning.recipe.language_model
    if train is None:
        return
    if train.lora is not None and decoder is None:
        planning.fault("train.lora", "the recipe has no language_model to update", "leave `lora` out")
    if train.lora is None and (bits := getattr(decoder, "quantize", None)) is not None:
        for name, stage in train.stages.items():
            if any(address.partition(".")[0] == "language_model" for address in stage.trainable):
                place = f"train.stages.{name}.trainable"
                planning.fault(place, f"weights held in {bits} do not learn", "add `lora: {rank: 16}` under `train`")


def _check_packing(planning: Planning, info: LanguageModelInfo | None) -> None:
    """Samples of one row are kept apart by the attention mask: whatever goes round attention would mix them."""
    train = planning.recipe.train
    if train is None or not train.packing:
        return
    if planning.recipe.language_model is None:
        planning.fault(
            "train.packing", "the recipe has no language_model, so there are no rows to pack", "leave it out"
        )
    elif info is not None and info.state:
        planning.fault(
            "train.packing",
            f"language_model {info.name} has {info.state}, which carry from one sample of a row into the next",
            "leave it out, or use a decoder with attention alone",
        )


def _check_source(planning: Planning, place: str, source: str) -> None:
    """An objective reads a stream, `semantic`, or a step of one, `semantic.mix`."""
    streams = planning.recipe.streams
    stream, dot, step = source.partition(".")
    if stream not in streams:
        planning.fault(place, f"no stream is called `{stream}`", suggestion(stream, list(streams)))
    elif dot and step not in streams[stream].steps:
        planning.fault(place, f"stream `{stream}` has no step `{step}`", suggestion(step, list(streams[stream].steps)))


def module_addresses(recipe: Recipe) -> Iterator[str]:
    """The addresses of the model's parts, as they stand in `state_dict`."""
    for name, stream in recipe.streams.items():
        yield f"streams.{name}.encoder"
        yield from (f"streams.{name}.steps.{step}" for step in stream.steps)
    yield from (f"fusion.{name}" for name in recipe.fusion)
    yield from (f"injectors.{name}" for name in recipe.injectors)
    if recipe.language_model is not None:
        yield "language_model"


def _check_addresses(
    planning: Planning, place: str, addresses: Iterable[str], parts: list[str], *, keyed: bool
) -> None:
    for index, address in enumerate(addresses):
        if not any(_overlap(address, part) for part in parts):
            at = f"{place}.{address if keyed else index}"
            planning.fault(at, f"`{address}` is no part of the model", suggestion(address, _prefixes(parts)))


def _overlap(address: str, part: str) -> bool:
    """Whether one address lies within the other; parameters inside a block are not known before it is built."""
    return f"{part}.".startswith(f"{address}.") or f"{address}.".startswith(f"{part}.")


def _prefixes(parts: Iterable[str]) -> list[str]:
    """All addresses on the way to the parts, shortest first."""
    found = {".".join(names[: n + 1]) for names in (part.split(".") for part in parts) for n in range(len(names))}
    return sorted(found - {"streams"}, key=lambda address: (address.count("."), address))
