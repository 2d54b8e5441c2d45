"""What a check is given: a block with one of its example configs, and the means to build and run it.

Shapes are tiny, seeds are fixed, and parameters are moved off their start ("awake"): a gate at zero or a map at the
identity would hide most mistakes.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fusionkit import registry
from fusionkit.errors import ShapeError
from fusionkit.geometry import Grid, LayerStackSpec, TokenSpec
from fusionkit.ops.placement import Placement
from fusionkit.ops.roles import parameter_roles
from fusionkit.ops.tokens import Tokens
from fusionkit.plugin import BlockConfig, BlockPlan, BlockSite, BlockSpec, EncoderInfo, input_names
from fusionkit.testing import fakes


class CheckFailed(AssertionError):  # noqa: N818 - said of a check, as pytest says it of a test
    """A block does not keep the contract; the message says what was expected and what was found."""


def require(condition: bool | Tensor, message: str) -> None:
    """Raise CheckFailed with `message` unless `condition` holds."""
    if not condition:
        raise CheckFailed(message)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what was expected; 0 for equal tensors, NaN if there is one."""
    exact = expected.detach().double()
    gap = float((found.detach().double() - exact).norm())
    return gap / float(exact.norm().clamp(min=1e-30)) if gap != 0 else 0.0


@dataclass
class Subject:
    """A block and one of its examples."""

    spec: BlockSpec
    example: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def config(self) -> BlockConfig:
        """The example, validated as recipes are: by way of JSON."""
        return self.spec.config.model_validate_json(json.dumps(dict(self.example)))

    def make(self, site: BlockSite) -> Any:
        """Call the block's factory."""
        return registry.factory(self.spec)(self.config, site)


class ModuleSubject(Subject):
    """A block that is an nn.Module."""

    site: BlockSite

    def build(self, device: str = "cpu", seed: int = 0) -> nn.Module:
        """A fresh module in eval mode."""
        with torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(seed)
            module: nn.Module = self.make(self.site)
        return module.eval()

    def awake(self, seed: int = 0) -> nn.Module:
        """A fresh module whose parameters are not at their start."""
        module = self.build(seed=seed)
        roles = parameter_roles(module)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if roles[name] == "gate":
                    parameter.fill_(0.5)
                else:
                    noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                    parameter.add_(noise.to(parameter), alpha=_noise(parameter))
        return module

    @cached_property
    def module(self) -> nn.Module:
        """One awake module that all checks share; use `copy` to change it."""
        return self.awake()

    def copy(self) -> nn.Module:
        return copy.deepcopy(self.module)

    def arguments(self, *, batch: int = 2, seed: int = 0) -> dict[str, Any]:
        """Inputs for one call, float32 on the CPU."""
        raise NotImplementedError

    def call(self, module: nn.Module, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
        """Run the module; its outputs by name."""
        raise NotImplementedError

    def run(self, module: nn.Module | None = None, **options: Any) -> dict[str, Tensor]:
        """Call with grad disabled on fresh arguments."""
        with torch.no_grad():
            return self.call(module or self.module, self.arguments(**options))


class StepSubject(ModuleSubject):
    """A mixer, adapter, pooler or connector, on the first made-up inputs that its planner takes."""

    @cached_property
    def _planned(self) -> tuple[dict[str, TokenSpec | LayerStackSpec], BlockPlan]:
        refusals = []
        for inputs in fakes.step_inputs(self.spec.family, input_names(self.config)):
            assert self.spec.plan is not None  # BlockSpec refuses steps without a planner
            try:
                return inputs, self.spec.plan(self.config, inputs, None)
            except ShapeError as error:
                refusals.append(f"{', '.join(map(str, inputs.values()))}: {error}")
        raise CheckFailed(f"the planner of {self.spec.address} refused all inputs:\n  " + "\n  ".join(refusals))

    @property
    def inputs(self) -> dict[str, TokenSpec | LayerStackSpec]:
        return self._planned[0]

    @property
    def plan(self) -> BlockPlan:
        return self._planned[1]

    @cached_property
    def site(self) -> BlockSite:  # type: ignore[override]  # built on first use
        return BlockSite(address="fusion.checked", inputs=self.inputs, plan=self.plan)

    def arguments(self, *, batch: int = 2, seed: int = 0) -> dict[str, Any]:
        return {name: fakes.like(spec, batch, seed + number) for number, (name, spec) in enumerate(self.inputs.items())}

    def outputs(self, module: nn.Module, arguments: Mapping[str, Any]) -> dict[str, Tokens]:
        """Run the module; all outputs as tokens."""
        single = arguments.get("input")
        out = module(**arguments) if single is None else module(single)
        if isinstance(out, Tensor):  # a mixer's
            out = Tokens(out, self.plan.main.grid, self.plan.main.frame)
        return out if isinstance(out, dict) else {"main": out}

    def call(self, module: nn.Module, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
        return {name: tokens.x_BND for name, tokens in self.outputs(module, arguments).items()}


class EncoderSubject(ModuleSubject):
    """An encoder that is read at its first, its last and a middle layer."""

    @cached_property
    def info(self) -> EncoderInfo:
        assert self.spec.describe is not None  # BlockSpec refuses encoders without it
        info = self.spec.describe(self.config)
        require(isinstance(info, EncoderInfo), f"describe() must return an EncoderInfo, got {type(info).__name__}")
        assert isinstance(info, EncoderInfo)
        return info

    @cached_property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted({0, self.info.depth // 2, self.info.depth}))

    def at(self, layers: tuple[int, ...]) -> EncoderSubject:
        """The same encoder read at other layers."""
        other = EncoderSubject(self.spec, self.example)
        other.layers = layers
        return other

    @cached_property
    def site(self) -> BlockSite:  # type: ignore[override]  # built on first use
        return BlockSite(address="streams.checked.encoder", info=self.info, layers=self.layers)

    def arguments(self, *, batch: int = 2, seed: int = 0) -> dict[str, Any]:
        return {"x_BCHW": fakes.random((batch, 3, *self.info.input_size), seed)}

    def call(self, module: nn.Module, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
        found = module.forward_layers(arguments["x_BCHW"], self.layers)  # type: ignore[operator]
        return {f"layer {layer}": x_BND for layer, x_BND in zip(self.layers, found, strict=True)}


class InjectorSubject(ModuleSubject):
    """An injector between tokens of width 16 and a decoder of width 16."""

    tokens = TokenSpec(fakes.GRID, fakes.WIDTH)
    inside = False

    @cached_property
    def plan(self) -> BlockPlan | None:
        return None if self.spec.plan is None else self.spec.plan(self.config, {"input": self.tokens}, fakes.WIDTH)

    @cached_property
    def site(self) -> BlockSite:  # type: ignore[override]  # built on first use
        return BlockSite(address="injectors.checked", inputs={"input": self.tokens}, plan=self.plan)

    def arguments(self, *, batch: int = 2, seed: int = 0) -> dict[str, Any]:
        mask_BT = torch.zeros(batch, 9, dtype=torch.bool)
        mask_BT[:, 2:5] = True
        mask_BT[0, 7] = True
        return {
            "embeds_BTE": fakes.random((batch, 9, fakes.WIDTH), seed),
            "visual_VE": fakes.random((int(mask_BT.sum()), fakes.WIDTH), seed + 1),
            "mask_BT": mask_BT,
        }

    def call(self, module: nn.Module, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
        return {"embeds": module(**arguments)}

    def image_mask(self, arguments: Mapping[str, Any]) -> Tensor:
        """True at the image tokens, [B, T]."""
        mask_BT: Tensor = arguments["mask_BT"]
        return mask_BT

    def places(self, arguments: Mapping[str, Any]) -> dict[int, list[list[int]]]:
        """For each visual vector the (row, position) pairs where it belongs."""
        return {k: [place] for k, place in enumerate(self.image_mask(arguments).nonzero().tolist())}

    def with_vectors(self, arguments: Mapping[str, Any], change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """The arguments with other visual vectors [V, E]."""
        return {**arguments, "visual_VE": change(arguments["visual_VE"])}

    def without_pictures(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The same text without pictures."""
        mask_BT = torch.zeros_like(arguments["mask_BT"])
        return {**arguments, "mask_BT": mask_BT, "visual_VE": arguments["visual_VE"][:0]}


class LayerInjectorSubject(InjectorSubject):
    """An injector inside the decoder, run at all its layers; one crop per row, and the last crop in row 0 too."""

    tokens = TokenSpec(Grid(1, 2), fakes.WIDTH)
    inside = True

    def arguments(self, *, batch: int = 2, seed: int = 0) -> dict[str, Any]:
        mask_BT = torch.zeros(batch, 9, dtype=torch.bool)
        mask_BT[:, 2:4] = True
        index = list(range(2 * batch))
        if batch > 1:
            mask_BT[0, 5:7] = True
            index[2:2] = index[-2:]
        return {
            "embeds_BTE": fakes.random((batch, 9, fakes.WIDTH), seed),
            "tokens": fakes.tokens(self.tokens, batch, seed + 1),
            "placement": Placement.of(mask_BT, torch.tensor(index), self.tokens.tokens),
        }

    def call(self, module: nn.Module, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
        return {"embeds": self.through_layers(module, arguments, arguments["embeds_BTE"], 0)}

    def through_layers(self, module: Any, arguments: Mapping[str, Any], hidden_BTE: Tensor, first: int) -> Tensor:
        """`hidden_BTE`, which begins at position `first` of its rows, after all layers of the injector."""
        state = module.prepare(arguments["tokens"], arguments["placement"])
        for layer in module.layers:
            hidden_BTE = module(hidden_BTE, state, layer, first)
        return hidden_BTE

    def image_mask(self, arguments: Mapping[str, Any]) -> Tensor:
        mask_BT: Tensor = arguments["placement"].image_BT
        return mask_BT

    def places(self, arguments: Mapping[str, Any]) -> dict[int, list[list[int]]]:
        found: dict[int, list[list[int]]] = {}
        indices = arguments["placement"].index_V.tolist()
        for index, place in zip(indices, self.image_mask(arguments).nonzero().tolist(), strict=True):
            found.setdefault(index, []).append(place)
        return found

    def with_vectors(self, arguments: Mapping[str, Any], change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        tokens: Tokens = arguments["tokens"]
        x_VE = change(tokens.x_BND.flatten(0, 1))
        return {**arguments, "tokens": tokens._replace(x_BND=x_VE.unflatten(0, tokens.x_BND.shape[:2]))}

    def without_pictures(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        tokens: Tokens = arguments["tokens"]
        none = torch.zeros_like(self.image_mask(arguments))
        placement = Placement.of(none, torch.zeros(0, dtype=torch.long), self.tokens.tokens)
        return {**arguments, "tokens": tokens._replace(x_BND=tokens.x_BND[:0]), "placement": placement}


def _noise(parameter: Tensor) -> float:
    """How far to move a parameter: 0.1, or less for a matrix so wide that its noise would amplify what it maps."""
    return 0.1 if parameter.ndim < 2 else min(0.1, 0.5 * parameter[0].numel() ** -0.5)


def tensors_of(arguments: Any) -> list[Tensor]:
    """Every floating-point tensor inside arguments, in order."""
    if isinstance(arguments, Tensor):
        return [arguments] if arguments.is_floating_point() else []
    if isinstance(arguments, Tokens):
        return [arguments.x_BND]
    if isinstance(arguments, Mapping):
        return [tensor for value in arguments.values() for tensor in tensors_of(value)]
    if isinstance(arguments, (list, tuple)):
        return [tensor for value in arguments for tensor in tensors_of(value)]
    return []


def replace_tensors(arguments: Any, change: Any) -> Any:
    """The same arguments with `change` applied to every floating-point tensor."""
    if isinstance(arguments, Tensor):
        return change(arguments) if arguments.is_floating_point() else arguments
    if isinstance(arguments, Tokens):
        x_BND, coverage_BN = change(arguments.x_BND), arguments.coverage_BN
        if coverage_BN is not None and (x_BND.shape != arguments.x_BND.shape or x_BND.device != coverage_BN.device):
            coverage_BN = change(coverage_BN)  # other crops, or elsewhere; other vectors leave it as it is
        return arguments._replace(x_BND=x_BND, coverage_BN=coverage_BN)
    if isinstance(arguments, Mapping):
        return {key: replace_tensors(value, change) for key, value in arguments.items()}
    if isinstance(arguments, list):
        return [replace_tensors(value, change) for value in arguments]
    return arguments
