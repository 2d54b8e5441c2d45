"""The block of a case made ready to be measured: awake weights, random data, one way to call it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fusionkit import registry
from fusionkit.bench.callers import (
    DecoderCall,
    EncoderCall,
    InjectorCall,
    LayerInjectorCall,
    ObjectiveCall,
    VisionCall,
    text_mask,
)
from fusionkit.bench.case import AnyCase, Case, Whole
from fusionkit.bench.objectives import objective_shapes, token_inputs, training_batch
from fusionkit.errors import BuildError
from fusionkit.geometry import LayerStackSpec, TokenSpec
from fusionkit.model.parts import build_parts, without_weights
from fusionkit.model.runtime import Runtime
from fusionkit.model.tower import Stream
from fusionkit.ops.placement import Placement
from fusionkit.ops.roles import parameter_roles
from fusionkit.ops.tokens import Tokens
from fusionkit.plugin import EncoderInfo, LayerInjectorConfig

Arguments = dict[str, Tokens | list[Tensor]]

OPEN_GATE = 0.5
ROTATION = 1.0
"""Spectral norm, about, that skew matrices are given: a matrix exponential near zero takes a cheap branch that a
trained one does not."""


def build_awake(case: AnyCase, seed: int = 0) -> nn.Module:
    """The block in fp32 on the default device, called as `callers` says; the same for the same seed and device.

    Every parameter of a fusion block is moved off its start. Encoders and decoders have random weights already.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(case, Whole):
            return _build_whole(case)
        module = registry.factory(case.spec)(without_weights(case.config), case.site)
        if not isinstance(module, nn.Module):
            raise BuildError(f"the factory of {case.address} returned a {type(module).__name__}, not a module")
        if case.site.info is None:
            wake(module)
    return _caller(case, module)


def _build_whole(case: Whole) -> VisionCall:
    # The decoder is most of the weight, and no part of this.
    parts = build_parts(replace(case.plan, injectors=(), language_model_node=None), pretrained=False)
    streams = {name: Stream(case.plan.streams[name], part.encoder, part.steps) for name, part in parts.streams.items()}
    for module in (*(step for stream in streams.values() for step in stream.steps.values()), *parts.fusion.values()):
        wake(module)
    chosen = {name: streams[name] for name in case.streams}
    return VisionCall(case.plan, chosen, nn.ModuleDict(parts.fusion) if case.fused else None, Runtime())


def _caller(case: Case, module: nn.Module) -> nn.Module:
    """What calls a block of this family; steps are called as they are."""
    family = case.spec.family
    if family == "encoders":
        return EncoderCall(module, case.site.layers)
    if family == "language_models":
        return DecoderCall(module)
    if family == "objectives":
        return ObjectiveCall(module, token_inputs(case), training_batch(case))
    if family == "injectors":
        tokens = case.site.tokens()
        visual = case.crops * tokens.tokens
        mask_BT = text_mask(1, max(case.text, visual), visual)
        if not hasattr(module, "prepare"):
            return InjectorCall(module, mask_BT)
        return LayerInjectorCall(module, tokens, Placement.of(mask_BT, torch.arange(visual), tokens.tokens))
    return module


def wake(module: nn.Module) -> None:
    """Move every parameter off its start."""
    roles = parameter_roles(module)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            _wake(parameter, roles[name])


def _wake(parameter: Tensor, role: str) -> None:
    """Gates half open, skew of a trained size, a little noise on the rest."""
    if role == "gate":
        parameter.fill_(OPEN_GATE)
    elif role == "skew":
        parameter.add_(torch.randn_like(parameter), alpha=skew_std(_side(parameter.shape)))
    else:
        fan_in = parameter.shape[-1] if parameter.ndim > 1 and role not in ("norm", "bias") else 1
        parameter.add_(torch.randn_like(parameter), alpha=0.1 / math.sqrt(fan_in))


def skew_std(side: int) -> float:
    """The deviation that gives a random skew-symmetric matrix of this side a spectral norm of about `ROTATION`."""
    return ROTATION / (2 * math.sqrt(side))


def _side(shape: torch.Size) -> int:
    """The side of the matrices a skew parameter stands for: [.., n, n], or [.., n(n-1)/2] numbers."""
    if len(shape) > 1 and shape[-1] == shape[-2]:
        return int(shape[-1])
    return max(1, (1 + math.isqrt(1 + 8 * int(shape[-1]))) // 2)


def make_arguments(case: AnyCase, dtype: torch.dtype, device: torch.device, seed: int = 1) -> Arguments:
    """Random inputs of the planned shapes, standard normal."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    def like(spec: TokenSpec | LayerStackSpec) -> Tokens | list[Tensor]:
        if isinstance(spec, LayerStackSpec):
            return [random(case.crops, spec.grid.tokens, spec.width) for _ in spec.layers]
        x_BND = random(case.crops, spec.tokens, spec.width)
        return Tokens(x_BND, spec.grid, spec.frame, None, spec.copies, spec.interleaved)

    shapes = _input_shapes(case)
    if shapes is not None:
        return {"input": [random(*shape) for shape in shapes]}
    if isinstance(case, Whole):
        raise BuildError(f"{case.address} has no input shapes")
    return {name: like(spec) for name, spec in case.site.inputs.items()}


def _input_shapes(case: AnyCase) -> list[tuple[int, ...]] | None:
    """The shapes of the list of tensors that a caller takes; None for steps, which take what the plan names."""
    if isinstance(case, Whole):
        return [(case.crops, 3, *case.plan.streams[name].info.input_size) for name in case.streams]
    family, info = case.spec.family, case.site.info
    if isinstance(info, EncoderInfo):
        return [(case.crops, 3, *info.input_size)]
    if info is not None:
        return [(1, case.text, info.width)]
    if family == "injectors":
        tokens, width = case.site.tokens(), case.site.output.width
        visual = case.crops * tokens.tokens
        inside = isinstance(case.config, LayerInjectorConfig)
        vectors = (case.crops, tokens.tokens, tokens.width) if inside else (visual, tokens.width)
        return [(1, max(case.text, visual), width), vectors]
    if family == "objectives":
        return objective_shapes(case)
    return None


def tensors_of(arguments: Arguments) -> list[Tensor]:
    """The tensors inside arguments, in order."""
    return [
        tensor for value in arguments.values() for tensor in ([value.x_BND] if isinstance(value, Tokens) else value)
    ]


def converted(arguments: Arguments, dtype: torch.dtype, requires_grad: bool = False) -> Arguments:
    """A copy of the arguments in another dtype, as leaves."""

    def convert(x: Tensor) -> Tensor:
        return x.detach().to(dtype, copy=True).requires_grad_(requires_grad)

    return {
        name: value._replace(x_BND=convert(value.x_BND)) if isinstance(value, Tokens) else [convert(x) for x in value]
        for name, value in arguments.items()
    }


def call(module: nn.Module, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """Run a block as its family is run; its outputs by name."""
    single = arguments.get("input")
    out = module(**arguments) if single is None else module(single)
    outputs = out if isinstance(out, dict) else {"main": out}
    return {name: value.x_BND if isinstance(value, Tokens) else value for name, value in outputs.items()}
