"""The block of a case made ready to be measured: awake weights, random data, one way to call it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fusionkit import registry
from fusionkit.bench.case import Case
from fusionkit.errors import BuildError
from fusionkit.geometry import LayerStackSpec, TokenSpec
from fusionkit.ops.roles import parameter_roles
from fusionkit.ops.tokens import Tokens

Arguments = dict[str, Tokens | list[Tensor]]

OPEN_GATE = 0.5
ROTATION = 1.0
"""Spectral norm, about, that skew matrices are given: a matrix exponential near zero takes a cheap branch that a
trained one does not."""


def build_awake(case: Case, seed: int = 0) -> nn.Module:
    """The block in fp32 on the CPU, with every parameter moved off its start; the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = registry.factory(case.spec)(case.config, case.site)
        if not isinstance(module, nn.Module):
            raise BuildError(f"the factory of {case.spec.address} returned a {type(module).__name__}, not a module")
        roles = parameter_roles(module)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                _wake(parameter, roles[name])
    return module


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


def make_arguments(case: Case, dtype: torch.dtype, device: torch.device, seed: int = 1) -> Arguments:
    """Random inputs of the planned shapes, standard normal."""
    generator = torch.Generator().manual_seed(seed)

    def random(tokens: int, width: int) -> Tensor:
        return torch.randn(case.crops, tokens, width, generator=generator).to(device, dtype)

    def like(spec: TokenSpec | LayerStackSpec) -> Tokens | list[Tensor]:
        if isinstance(spec, LayerStackSpec):
            return [random(spec.grid.tokens, spec.width) for _ in spec.layers]
        return Tokens(random(spec.tokens, spec.width), spec.grid, spec.frame, None, spec.copies, spec.interleaved)

    return {name: like(spec) for name, spec in case.site.inputs.items()}


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
