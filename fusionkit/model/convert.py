"""Another project's checkpoint, converted into a model of a recipe by a table. Strict.

Every tensor of the checkpoint is used, declared dead by the table, or an error; every tensor of the model is filled, once
and with its own shape, or an error. All faults are told together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from fusionkit.errors import CheckpointError, FusionkitError
from fusionkit.model.convert_rules import apply
from fusionkit.model.convert_table import ConversionTable, Rule

SHOWN = 12
"""How many faults an error names."""


class Tensors(Protocol):
    """What is read of a checkpoint: a mapping from names to tensors, loaded when they are asked for."""

    def __iter__(self) -> Iterator[str]: ...

    def __getitem__(self, name: str) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Step:
    """A rule applied: which tensors it takes, by their names in the checkpoint, and which it gives."""

    rule: Rule
    takes: tuple[str, ...]
    gives: tuple[str, ...]


@dataclass(slots=True)
class Conversion:
    """What is to be done with every tensor of a checkpoint. `dead` is name -> why; `used` counts tensors taken."""

    steps: list[Step] = field(default_factory=list)
    dead: dict[str, str] = field(default_factory=dict)

    @property
    def used(self) -> int:
        return sum(len(step.takes) for step in self.steps)


def plan_conversion(
    table: ConversionTable, names: Iterator[str] | list[str], targets: Mapping[str, Tensor]
) -> Conversion:
    """Decide for every name of a checkpoint; `targets` are the tensors the model wants.

    Raises CheckpointError naming tensors that no rule knows, that two rules want to give, that a rule lacks, and
    tensors of the model that nothing fills.
    """
    stored = {table.plain(name): name for name in names}
    faults: list[str] = []
    conversion = Conversion()
    taken: set[str] = set()
    for plain in sorted(stored):
        if plain in taken:
            continue
        match = next(((rule, places) for rule in table.rules if (places := rule.places(plain)) is not None), None)
        if match is None:
            if not any(plain in rule.takes[1:] for rule in table.rules):
                faults.append(f"{plain}: no rule of the table is for it")
            continue
        rule, places = match
        if rule.dead is not None:
            conversion.dead[plain] = rule.dead
            taken.add(plain)
            continue
        takes = tuple(_filled(name, places) for name in rule.takes)
        if lacking := [name for name in takes if name not in stored]:
            faults.append(f"{lacking[0]}: not in the checkpoint, but {plain} needs it")
        taken.update(takes)
        gives = tuple(_filled(name, places) for name in rule.gives)
        conversion.steps.append(Step(rule, tuple(stored.get(name, name) for name in takes), gives))
    faults += [f"{name}: no first part of its pair in the checkpoint" for name in _left_over(table, stored, taken)]
    given = [name for step in conversion.steps for name in step.gives]
    faults += [f"{name}: given twice" for name in sorted({name for name in given if given.count(name) > 1})]
    faults += [f"{name}: the recipe's model has no such tensor" for name in sorted(set(given) - set(targets))]
    faults += [f"{name}: nothing in the checkpoint fills it" for name in sorted(set(targets) - set(given))]
    _raise(faults)
    return conversion


def convert(
    table: ConversionTable, tensors: Tensors, targets: Mapping[str, Tensor], token_ids: Mapping[str, int]
) -> tuple[dict[str, Tensor], Conversion]:
    """The state dict of a model whose tensors are like `targets` (shape, dtype), and what was done.

    `token_ids` are the model's ids of the tokens that fusionkit added. `targets` may be on the meta device; the result
    is where the checkpoint's tensors are.

    Raises CheckpointError as `plan_conversion` does, and for shapes that do not fit.
    """
    conversion = plan_conversion(table, list(tensors), targets)
    state: dict[str, Tensor] = {}
    faults: list[str] = []
    for step in conversion.steps:
        wanted = [targets[name] for name in step.gives]
        try:
            found = apply(
                step.rule, [tensors[name] for name in step.takes], [tuple(like.shape) for like in wanted], token_ids
            )
        except (FusionkitError, RuntimeError, ValueError) as error:
            faults.append(f"{', '.join(step.takes)}: {str(error).splitlines()[0]}")
            continue
        for name, value, like in zip(step.gives, found, wanted, strict=True):
            if value.shape != like.shape:
                faults.append(
                    f"{name}: {_shape(value)} from {', '.join(step.takes)}, the recipe's model has {_shape(like)}"
                )
            else:
                state[name] = value.to(like.dtype).contiguous()
    _raise(faults)
    return state, conversion


def usual_dtype(tensors: Tensors) -> torch.dtype:
    """The floating-point dtype that most numbers of a checkpoint have."""
    counts: dict[torch.dtype, int] = {}
    for name in tensors:
        value = tensors[name]
        if value.is_floating_point():
            counts[value.dtype] = counts.get(value.dtype, 0) + value.numel()
    return max(counts, key=lambda dtype: counts[dtype]) if counts else torch.float32


def _left_over(table: ConversionTable, stored: Mapping[str, str], taken: set[str]) -> list[str]:
    """Tensors that are only known as the second of a pair, and whose first is not there."""
    seconds = {name for rule in table.rules for name in rule.takes[1:]}
    return sorted(name for name in stored if name in seconds and name not in taken)


def _filled(name: str, places: Mapping[str, str]) -> str:
    for place, text in places.items():
        name = name.replace(f"{{{place}}}", text)
    return name


def _shape(x: Tensor) -> str:
    return f"[{', '.join(map(str, x.shape))}]"


def _raise(faults: list[str]) -> None:
    if faults:
        more = f"\n  and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        shown = "".join(f"\n  {fault}" for fault in faults[:SHOWN])
        raise CheckpointError(f"the checkpoint does not fit the recipe and its conversion table:{shown}{more}")
