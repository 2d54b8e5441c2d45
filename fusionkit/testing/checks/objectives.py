"""What every objective must do: give finite scalar losses that teach what it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from fusionkit.geometry import Box, TokenSpec
from fusionkit.ops.tokens import Tokens
from fusionkit.plugin import BlockSite, input_names
from fusionkit.testing import fakes
from fusionkit.testing.subjects import Subject, require

NEEDS = frozenset({"streams", "language_model", "modules"})
ROWS, POSITIONS, COORDINATES = 32, 7, tuple(range(20, 30))


@dataclass
class Outputs:
    """What an objective reads of a model's output."""

    streams: Mapping[str, Tokens]
    logits: Tensor | None
    modules: Mapping[str, nn.Module] = field(default_factory=dict)


class Mixer(nn.Module):
    """Stands at every address that an objective reads: two free matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(fakes.random((2, fakes.WIDTH, fakes.WIDTH), 5) / 4)

    def matrices(self) -> Tensor:
        return self.weight


class ObjectiveSubject(Subject):
    """An objective on made-up outputs of a model: two pictures of one crop each, with one object each."""

    @property
    def streams(self) -> tuple[str, ...]:
        return tuple(input_names(self.config).values()) or ("semantic",)

    def build(self, **changes: Any) -> nn.Module:
        subject = type(self)(self.spec, {**self.example, **changes})
        shape = TokenSpec(fakes.GRID, fakes.WIDTH)
        site = BlockSite(
            address="train.stages.checked.objectives.checked",
            inputs=MappingProxyType(dict.fromkeys(self.streams, shape)),
            coordinate_ids=COORDINATES,
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            made: nn.Module = subject.make(site)
        return made

    @cached_property
    def module(self) -> nn.Module:
        return self.build()

    def outputs(self) -> Outputs:
        streams = {name: fakes.tokens(TokenSpec(fakes.GRID, fakes.WIDTH), 2, n) for n, name in enumerate(self.streams)}
        streams = {name: t._replace(x_BND=t.x_BND.requires_grad_()) for name, t in streams.items()}
        logits = fakes.random((2, POSITIONS, ROWS), 9).requires_grad_() if "language_model" in self.needs else None
        return Outputs(streams, logits, {address: Mixer() for address in getattr(self.module, "reads", ())})

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(self.module.needs)  # type: ignore[arg-type]

    def read(self, outputs: Outputs) -> list[Tensor]:
        """The tensors the objective says it looks at."""
        if outputs.modules:
            return [parameter for module in outputs.modules.values() for parameter in module.parameters()]
        if outputs.logits is not None:
            return [outputs.logits]
        return [outputs.streams[name].x_BND for name in getattr(self.module, "streams", self.streams)]

    @cached_property
    def batch(self) -> dict[str, Any]:
        """The training batch: a sample per picture, whose objects carry a value for every label of the config."""
        labels = {name: values[0] for name, values in dict(getattr(self.config, "labels", {})).items()}
        samples = [
            replace(sample, objects=tuple(replace(thing, labels=labels) for thing in sample.objects))
            for sample in fakes.samples(2)
        ]
        label_ids = torch.full((2, POSITIONS), -100)
        label_ids[:, 3:] = torch.tensor([3, COORDINATES[4], COORDINATES[9], 5])
        regions = [(Box(0, 0, sample.size.width, sample.size.height),) for sample in samples if sample.size is not None]
        return {
            "input_ids": torch.ones_like(label_ids),
            "attention_mask": torch.ones_like(label_ids),
            "labels": label_ids,
            "crop_counts": torch.ones(2, dtype=torch.long),
            "samples": samples,
            "turns": [(number, sample.turns[0]) for number, sample in enumerate(samples)],
            "regions": regions,
        }

    def losses(self, module: nn.Module, outputs: Outputs) -> dict[str, Tensor]:
        modules = (outputs.modules,) if "modules" in self.needs else ()
        found: dict[str, Tensor] = module(outputs, self.batch, *modules)
        return found


def check_needs_are_known(subject: ObjectiveSubject) -> None:
    """`needs` says what has to be run or handed over: streams (named in `streams`), language_model, modules (in `reads`)."""
    require(subject.needs <= NEEDS, f"needs {sorted(subject.needs)}, expected some of {sorted(NEEDS)}")
    require(bool(subject.needs), "needs nothing, so nothing would be run")
    if "modules" in subject.needs:
        require(bool(getattr(subject.module, "reads", ())), "needs modules but does not say which in `reads`")
    elif "language_model" not in subject.needs:
        named = tuple(getattr(subject.module, "streams", ()))
        require(bool(named), "needs only streams but does not say which in `streams`")
        require(set(named) <= set(subject.streams), f"reads streams {named}, configured for {subject.streams}")


def check_losses_are_scalars(subject: ObjectiveSubject) -> None:
    """Every loss is a finite scalar of its own name that has a gradient."""
    losses = subject.losses(subject.module, subject.outputs())
    require(bool(losses), "gives no loss")
    for name, loss in losses.items():
        require(loss.ndim == 0, f"loss '{name}' has shape {tuple(loss.shape)}, expected a scalar")
        require(loss.isfinite(), f"loss '{name}' is {loss.item()}")
        require(loss.requires_grad, f"loss '{name}' has no gradient")


def check_gradients_reach_what_it_reads(subject: ObjectiveSubject) -> None:
    """The sum of the losses has a gradient for everything read and for every parameter of its own."""
    module, outputs = subject.build(), subject.outputs()
    torch.stack(list(subject.losses(module, outputs).values())).sum().backward()
    read = {f"output {number}": tensor for number, tensor in enumerate(subject.read(outputs))}
    for name, tensor in {**read, **dict(module.named_parameters())}.items():
        require(tensor.grad is not None and bool(tensor.grad.abs().max() > 0), f"{name} gets no gradient")


def check_repeatable(subject: ObjectiveSubject) -> None:
    """The same outputs and batch give the same losses."""
    first, second = (subject.losses(subject.build(), subject.outputs()) for _ in range(2))
    require(first.keys() == second.keys(), f"losses {list(first)} and {list(second)}")
    for name, loss in first.items():
        require(torch.equal(loss, second[name]), f"loss '{name}' is {loss.item()}, then {second[name].item()}")


def check_weight_is_a_factor(subject: ObjectiveSubject) -> None:
    """Twice the weight is twice every loss."""
    require("weight" in subject.spec.config.model_fields, "the config has no field 'weight'")
    one, two = (subject.losses(subject.build(weight=w), subject.outputs()) for w in (1.0, 2.0))
    for name, loss in one.items():
        require(torch.allclose(2 * loss, two[name]), f"with twice the weight loss '{name}' is {two[name].item()}")


def check_can_be_learned(subject: ObjectiveSubject) -> None:
    """Following the gradient lowers the sum of the losses."""
    module, outputs = subject.build(), subject.outputs()
    optimizer = torch.optim.Adam([*module.parameters(), *subject.read(outputs)], lr=0.05)
    history = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = torch.stack(list(subject.losses(module, outputs).values())).sum()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    require(history[-1] < history[0], f"after 20 steps the loss is {history[-1]}, it started at {history[0]}")


OBJECTIVE_CHECKS = (
    check_needs_are_known,
    check_losses_are_scalars,
    check_gradients_reach_what_it_reads,
    check_repeatable,
    check_weight_is_a_factor,
    check_can_be_learned,
)
