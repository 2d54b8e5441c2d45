"""Mixers on any stack of layers: shapes, folding, streaming and dtypes, for any config and seed."""

from __future__ import annotations

import copy
from typing import Any

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from fusionkit import registry
from fusionkit.geometry import LayerStackSpec
from fusionkit.ops.diagnostics import orthogonality
from fusionkit.plugin import BlockPlan, BlockSite
from fusionkit.testing import fakes, strategies

CASES = [
    (name, dict(example)) for name in registry.names("mixers") for example in registry.spec("mixers", name).examples
]
mixers = st.sampled_from(CASES)
stacks = strategies.layer_stacks(max_depth=6)
wide_stacks = strategies.layer_stacks(max_depth=6, widths=(32, 48, 64))


def build(case: tuple[str, dict[str, Any]], stack: LayerStackSpec, seed: int) -> tuple[Any, BlockPlan]:
    """A mixer whose parameters are not at their start, and its plan."""
    name, fields = case
    assume(name != "group_mean" or fields.get("groups", 2) <= stack.depth)
    spec = registry.spec("mixers", name)
    config = spec.config(**fields)
    assert spec.plan is not None
    plan = spec.plan(config, {"input": stack}, None)
    torch.manual_seed(seed)
    module: nn.Module = registry.factory(spec)(config, BlockSite("mix", {"input": stack}, plan))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return module, plan


def layers_of(stack: LayerStackSpec, seed: int, dtype: torch.dtype = torch.float32, crops: int = 2) -> list[Tensor]:
    return [x.to(dtype) for x in fakes.layers(stack, crops, seed)]


def off_by(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what was expected."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@given(mixers, stacks, strategies.seeds)
def test_the_plan_is_what_comes_out(case: tuple[str, dict[str, Any]], stack: LayerStackSpec, seed: int) -> None:
    module, plan = build(case, stack, seed)
    assert (plan.main.grid, plan.main.frame, plan.main.tokens) == (stack.grid, stack.frame, stack.grid.tokens)
    assert module(layers_of(stack, seed)).shape == (2, plan.main.tokens, plan.main.width)
    assert sum(parameter.numel() for parameter in module.parameters()) == plan.params


@given(mixers, stacks, st.integers(1, 7), strategies.seeds)
def test_folded_and_streamed_in_fp32(
    case: tuple[str, dict[str, Any]], stack: LayerStackSpec, chunk: int, seed: int
) -> None:
    module, _ = build(case, stack, seed)
    layers = layers_of(stack, seed)
    expected = module(layers).detach()
    scale = max(1.0, float(expected.abs().max()))
    module.eval()
    with torch.no_grad():
        torch.testing.assert_close(module(layers), expected, rtol=0, atol=2e-6 * scale)
        if case[0] == "channel_concat":
            return
        state = module.begin(chunk)
        for index, x_BND in enumerate(layers):
            state = module.accumulate(state, index, x_BND)
        torch.testing.assert_close(module.finish(state), expected, rtol=0, atol=2e-6 * scale)


@given(mixers, wide_stacks, strategies.seeds, st.booleans(), st.sampled_from([1.0, 1e-3, 1e3]))
def test_bf16_is_close_and_never_nan(
    case: tuple[str, dict[str, Any]], stack: LayerStackSpec, seed: int, training: bool, scale: float
) -> None:
    """Against fp64 with the same rounded numbers; over so many that rounding averages out."""
    low = build(case, stack, seed)[0].to(torch.bfloat16).train(training)
    layers = [x * scale for x in layers_of(stack, seed, torch.bfloat16, crops=16)]
    with torch.no_grad():
        out = low(layers)
        exact = copy.deepcopy(low).double()([x.double() for x in layers])
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()
    # Two products in a row, with a norm between them, round twice.
    assert off_by(out, exact) <= (7e-3 if case[0] == "orthogonal_two_stage" else 5e-3)


@given(mixers, wide_stacks, strategies.seeds, st.booleans())
def test_autocast_on_and_off_agree(
    case: tuple[str, dict[str, Any]], stack: LayerStackSpec, seed: int, training: bool
) -> None:
    module = build(case, stack, seed)[0].train(training)
    layers = layers_of(stack, seed)
    with torch.no_grad():
        off = module(layers)
        module.unfold() if hasattr(module, "unfold") else None
        with torch.autocast("cpu", torch.bfloat16):
            on = module(layers)
    assert on.dtype == torch.float32
    assert off_by(on, off) <= 2e-2
    if hasattr(module, "matrices") and case[0] == "orthogonal":
        with torch.autocast("cpu", torch.bfloat16):
            assert orthogonality(module.matrices()).holds(1e-5)
