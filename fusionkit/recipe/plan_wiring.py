"""Who reads whom: the sources of every step and injector by name, before any shape is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

from fusionkit import registry
from fusionkit.geometry import TokenSpec
from fusionkit.plugin import BlockConfig, LayerInjectorConfig, StepConfig, input_names
from fusionkit.recipe.plan_types import ENCODER, Node
from fusionkit.recipe.planning import Planning, suggestion

Previous = TypeVar("Previous", str, str | None)

Sources = dict[str, dict[str, str]]
"""Step name -> argument -> what it reads."""


@dataclass(frozen=True, slots=True)
class FusionWiring:
    """What fusion steps and injectors read; `visual` is the source of the tokens that stand in the text."""

    steps: Sources
    injectors: Sources
    visual: str


def wire_stream(planning: Planning, stream: str, steps: Mapping[str, BlockConfig]) -> Sources | None:
    """What each step of a stream reads; None when a name is wrong or an output is read by nothing."""
    prefix = f"streams.{stream}.steps"
    before = len(planning.problems)
    wired: Sources = {}
    for name, config in steps.items():
        earlier = list(wired)
        wired[name] = reads(config, earlier[-1] if earlier else ENCODER)
        known = earlier or [ENCODER]
        for argument, source in wired[name].items():
            if _base(source) not in known:
                place = f"{prefix}.{name}.{_field(config, argument, source)}"
                planning.fault(place, *_unknown_in_stream(source, known, list(steps), planning))
        if earlier and registry.step_spec(config.type).family == "mixers":
            planning.fault(
                f"{prefix}.{name}",
                "a mixer reads the encoder's layers, so it must be the first step",
                f"move `{name}` before `{earlier[0]}`",
            )
    if len(planning.problems) > before:
        return None
    _refuse_unread(planning, prefix, steps, [*wired.values(), {"output": next(reversed(wired), "")}])
    return None if len(planning.problems) > before else wired


def wire_fusion(planning: Planning) -> FusionWiring | None:
    """What each fusion step and each injector reads; None when a name is wrong or an output is read by nothing."""
    recipe = planning.recipe
    streams = list(recipe.streams)
    before = len(planning.problems)
    steps: Sources = {}
    last = streams[0] if len(streams) == 1 else None
    for name, config in recipe.fusion.items():
        _wire_one(planning, f"fusion.{name}", config, [*streams, *steps], last, steps)
        last = name
    injectors: Sources = {}
    for name, config in recipe.injectors.items():
        _wire_one(planning, f"injectors.{name}", config, [*streams, *steps], last, injectors)
    if last is None:
        _fault_unjoined(planning, "streams")
    if len(planning.problems) > before:
        return None
    placing = [read for name, read in injectors.items() if not acts_inside(recipe.injectors[name])]
    taken = dict.fromkeys(source for read in placing for source in read.values())
    if len(taken) > 1:
        planning.fault("injectors", f"they read different tokens: {', '.join(taken)}", "let all read the same")
        return None
    visual = next(iter(taken), last or "")
    used = [*steps.values(), *injectors.values(), {"visual": visual}]
    _refuse_unread(planning, "fusion", recipe.fusion, used)
    _refuse_unread(planning, "streams", recipe.streams, used)
    return None if len(planning.problems) > before else FusionWiring(steps, injectors, visual)


def acts_inside(config: BlockConfig) -> bool:
    """Whether an injector acts inside the decoder, and so may read other tokens than those in the text."""
    return isinstance(config, LayerInjectorConfig)


def _wire_one(
    planning: Planning, address: str, config: BlockConfig, known: Sequence[str], previous: str | None, into: Sources
) -> None:
    """Add one fusion step or injector to `into`, and note the names in it that are not known."""
    read = reads(config, previous)
    into[address.rpartition(".")[2]] = {argument: source for argument, source in read.items() if source is not None}
    for argument, source in read.items():
        if source is None:
            _fault_unjoined(planning, address)
        elif _base(source) not in known:
            place = f"{address}.{_field(config, argument, source)}"
            planning.fault(place, *_unknown_in_fusion(source, known, list(planning.recipe.fusion)))


def _fault_unjoined(planning: Planning, address: str) -> None:
    """Several streams and nothing that says which to read: the fix joins all of them."""
    recipe = planning.recipe
    streams = list(recipe.streams)
    name = unused_name("join", [*streams, *recipe.fusion])
    planning.fault(
        address,
        f"there are {len(streams)} streams ({', '.join(streams)}) and no connector joins them",
        f"begin `fusion` with `{name}: {{type: concat, inputs: [{', '.join(streams)}]}}`",
    )


def reads(config: BlockConfig, previous: Previous) -> dict[str, str | Previous]:
    """Argument -> source of a step: what it names, and the previous step for an `input` it does not name."""
    named: dict[str, str | Previous] = dict(input_names(config))
    if "input" not in named and (not named or isinstance(config, StepConfig)):
        named["input"] = previous
    return named


def _field(config: BlockConfig, argument: str, source: str) -> str:
    """Where in the config an input was named: its field, or its place in a field that lists several."""
    for field in type(config).model_fields:
        value = getattr(config, field)
        if isinstance(value, tuple) and source in value:
            return f"{field}.{value.index(source)}"
    return argument


def outputs_of(node: Node) -> dict[str, TokenSpec]:
    """What later steps may read of this one: its name, and `name.output` for every output beside `main`."""
    extra = {f"{node.name}.{key}": spec for key, spec in node.plan.outputs.items() if key != "main"}
    return {node.name: node.output, **extra}


def shapes_of(
    planning: Planning, address: str, sources: Mapping[str, str], known: Mapping[str, TokenSpec]
) -> dict[str, TokenSpec] | None:
    """The shapes a step reads; None when one of them could not be planned, or is an output its step does not have."""
    for argument, source in sources.items():
        if source not in known and _base(source) in known:
            outputs = [name for name in known if name.startswith(f"{_base(source)}.")]
            planning.fault(
                f"{address}.{argument}",
                f"`{_base(source)}` has no output `{source.partition('.')[2]}`",
                suggestion(source, [_base(source), *outputs]),
            )
    if any(source not in known for source in sources.values()):
        return None
    return {argument: known[source] for argument, source in sources.items()}


def unused_name(wanted: str, taken: Iterable[str]) -> str:
    """`wanted`, or the first of `wanted_2`, `wanted_3`, ... that is free."""
    used = set(taken)
    return wanted if wanted not in used else next(name for n in count(2) if (name := f"{wanted}_{n}") not in used)


def _refuse_unread(planning: Planning, prefix: str, names: Iterable[str], sources: Iterable[Mapping[str, str]]) -> None:
    """Note every step or stream whose output goes nowhere."""
    read = {_base(source) for of_one in sources for source in of_one.values()}
    kind = "stream" if prefix == "streams" else "step"
    for name in names:
        if name not in read:
            hint = f"remove it, or name `{name}` as an input of a later step"
            planning.fault(f"{prefix}.{name}", f"nothing reads this {kind}", hint)


def _unknown_in_stream(source: str, known: list[str], steps: list[str], planning: Planning) -> tuple[str, str]:
    name = _base(source)
    if name == ENCODER:
        return "only the first step reads the encoder", suggestion(source, known)
    if name in steps:
        return f"`{name}` is not an earlier step", "move it before this one"
    if name in planning.recipe.streams:
        return f"a step of a stream cannot read the stream `{name}`", "combine streams under `fusion`"
    return f"unknown source `{source}`", suggestion(source, known)


def _unknown_in_fusion(source: str, known: Sequence[str], steps: list[str]) -> tuple[str, str]:
    if _base(source) in steps:
        return f"`{_base(source)}` is not an earlier step", "move it before this one"
    return f"unknown source `{source}`", suggestion(source, list(known))


def _base(source: str) -> str:
    return source.partition(".")[0]
