"""Adapters against their equations written out, and against what they must refuse."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from fusionkit import registry
from fusionkit.errors import ShapeError
from fusionkit.geometry import FULL, Frame, Grid, TokenSpec
from fusionkit.ops.tokens import Tokens
from fusionkit.plugin import BlockSite
from fusionkit.testing import fakes

SPEC = TokenSpec(Grid(2, 3), 8)


def planned(name: str, spec: TokenSpec = SPEC, target: int | None = None, **options: Any):
    block = registry.spec("adapters", name)
    config = block.config.model_validate_json(json.dumps(options))
    return block, config, block.plan(config, {"input": spec}, target)


def adapter(name: str, spec: TokenSpec = SPEC, target: int | None = None, **options: Any):
    block, config, plan = planned(name, spec, target, **options)
    torch.manual_seed(0)
    site = BlockSite(address="fusion.project", inputs={"input": spec}, plan=plan)
    return registry.factory(block)(config, site).double().eval()


def tokens(spec: TokenSpec = SPEC) -> Tokens:
    made = fakes.tokens(spec)
    return made._replace(x_BND=made.x_BND.double())


def normed(x, weight, bias):
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).square().mean(-1, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * weight + bias


def gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def test_linear():
    module = adapter("linear", width=5)
    x, layer = tokens().x_BND, module.linear
    torch.testing.assert_close(module(tokens()).x_BND, x @ layer.weight.T + layer.bias)
    assert adapter("linear", bias=False).linear.bias is None


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_gelu_mlp(depth, norm):
    module = adapter("mlp", hidden=6, width=5, depth=depth, norm=norm)
    x = tokens().x_BND
    if norm:
        torch.nn.init.normal_(module.norm.weight)
        x = normed(x, module.norm.weight, module.norm.bias)
    for number, layer in enumerate(module.layers):
        x = (gelu(x) if number else x) @ layer.weight.T + layer.bias
    torch.testing.assert_close(module(tokens()).x_BND, x)
    assert [layer.out_features for layer in module.layers] == [6] * (depth - 1) + [5]


def test_swiglu_mlp():
    module = adapter("mlp", hidden=6, width=5, activation="swiglu")
    x = tokens().x_BND
    a, b = x @ module.gate.weight.T, x @ module.up.weight.T
    torch.testing.assert_close(module(tokens()).x_BND, (a * torch.sigmoid(a) * b) @ module.down.weight.T)


def test_gated_mlp():
    module = adapter("gated_mlp", expansion=2)
    x = tokens().x_BND
    a, b = F.linear(normed(x, module.norm.weight, module.norm.bias), module.expand.weight, module.expand.bias).split(
        16, -1
    )
    expected = x + (a * gelu(b)) @ module.contract.weight.T + module.contract.bias
    torch.testing.assert_close(module(tokens()).x_BND, expected)


def test_gated_mlp_drops_out_in_training_only():
    module = adapter("gated_mlp", dropout=0.5)
    assert torch.equal(module(tokens()).x_BND, module(tokens()).x_BND)
    module.train()
    assert not torch.equal(module(tokens()).x_BND, module(tokens()).x_BND)


def test_sincos_is_its_equation():
    spec = TokenSpec(Grid(3, 4), 16, Frame(0.0, 0.0, 1.0, 0.5))
    given = tokens(spec)
    code = adapter("sincos_position", spec, scale=0.5)(given).x_BND - given.x_BND
    for n, (y, x) in enumerate(spec.frame.cell_centres(spec.grid)):
        for j in range(4):
            short_y, short_x = 2 * 0.5 / 3, 2 / 4
            angle_y = 2 * math.pi * y / (short_y * (2 / short_y) ** (j / 3))
            angle_x = 2 * math.pi * x / (short_x * (2 / short_x) ** (j / 3))
            expected = [math.sin(angle_y), math.sin(angle_x), math.cos(angle_y), math.cos(angle_x)]
            found = code[0, n, [j, 4 + j, 8 + j, 12 + j]].tolist()
            assert found == pytest.approx([0.5 * value for value in expected], abs=1e-12)
    assert torch.allclose(code[0], code[1], atol=1e-14)


def test_sincos_tells_every_cell_of_a_large_grid_apart():
    spec = TokenSpec(Grid(24, 24), 32)
    code = adapter("sincos_position", spec)(tokens(spec)).x_BND - tokens(spec).x_BND
    distance = torch.cdist(code[0], code[0]) + 10 * torch.eye(576)
    assert distance.min() > 0.1


def test_sincos_has_nothing_to_learn_or_save():
    module = adapter("sincos_position")
    assert not module.state_dict()
    assert planned("sincos_position")[2].params == 0


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_width_follows_the_target_unless_it_is_given(name):
    assert planned(name, target=20)[2].main.width == 20
    assert planned(name, target=20, width=12)[2].main.width == 12
    assert planned(name)[2].main.width == 8
    assert planned(name, target=20, width={"like": "semantic"})[2].main.width == 20


def test_gated_mlp_with_residual_keeps_its_width():
    assert planned("gated_mlp", target=20)[2].main.width == 8
    assert planned("gated_mlp", target=20, residual=False)[2].main.width == 20


def test_the_flagship_projector_has_111_million_parameters():
    spec = TokenSpec(Grid(12, 12), 1152)
    plan = planned("mlp", spec, 3584, hidden=18944, activation="swiglu")[2]
    assert plan.params == 2 * 1152 * 18944 + 18944 * 3584
    assert round(plan.params / 1e6, 1) == 111.5


@pytest.mark.parametrize(
    ("name", "spec", "options", "text"),
    [
        ("gated_mlp", SPEC, {"width": 5}, "residual needs the output width 5 to be the input width 8"),
        ("sincos_position", TokenSpec(Grid(2, 2), 6), {}, "width 6 is not a multiple of 4"),
        ("sincos_position", TokenSpec(Grid(2, 2), 8, copies=2), {}, "cannot number 2x2x2 tokens of width 8"),
    ],
)
def test_plan_errors(name, spec, options, text):
    with pytest.raises(ShapeError, match=re.escape(text)):
        planned(name, spec, **options)


def test_swiglu_has_one_depth():
    with pytest.raises(ValidationError, match="depth must be 2 with activation swiglu, got 3"):
        planned("mlp", activation="swiglu", depth=3)


@pytest.mark.parametrize("name", ["linear", "mlp", "gated_mlp", "sincos_position"])
def test_another_width_is_refused(name):
    with pytest.raises(ShapeError, match=r"fusion\.project: expected tokens of width 8, got 12"):
        adapter(name)(tokens(SPEC.with_width(12)))


def test_places_are_kept():
    given = Tokens(tokens().x_BND, Grid(2, 3), FULL, torch.ones(2, 6, dtype=torch.bool))
    out = adapter("mlp", width=5)(given)
    assert (out.grid, out.frame, out.valid_BN is given.valid_BN) == (given.grid, given.frame, True)


def padding_embedding(width: int = 3) -> torch.nn.Module:
    spec = registry.spec("adapters", "padding_embedding")
    config, tokens = spec.config(), TokenSpec(Grid(1, 4), width)
    site = BlockSite(inputs={"input": tokens}, plan=spec.plan(config, {"input": tokens}, None))
    return registry.factory(spec)(config, site)


def test_padding_and_edge_get_vectors_of_their_own():
    """As the released code does: [0] where nothing of the picture is seen, [1] where some is."""
    block = padding_embedding()
    x_BND = torch.randn(2, 4, 3)
    coverage_BN = torch.tensor([[1.0, 0.5, 0.0, 0.999], [0.0, 1.0, 1.0, 1e-6]])
    expected = x_BND.clone()
    for crop, token, row in ((0, 1, 1), (0, 2, 0), (0, 3, 1), (1, 0, 0), (1, 3, 1)):
        expected[crop, token] += block.embedding[row]
    found = block(Tokens(x_BND, Grid(1, 4), coverage_BN=coverage_BN))
    torch.testing.assert_close(found.x_BND, expected, rtol=0, atol=0)
    assert found.coverage_BN is coverage_BN


def test_without_coverage_invalid_tokens_are_padding_and_nothing_else_changes():
    block = padding_embedding()
    x_BND = torch.randn(1, 4, 3)
    assert torch.equal(block(Tokens(x_BND, Grid(1, 4))).x_BND, x_BND)
    valid_BN = torch.tensor([[True, False, True, True]])
    found = block(Tokens(x_BND, Grid(1, 4), valid_BN=valid_BN)).x_BND
    torch.testing.assert_close(found[0, 1], x_BND[0, 1] + block.embedding[0])
    assert torch.equal(found[valid_BN], x_BND[valid_BN])


def test_pooling_averages_coverage():
    spec = registry.spec("poolers", "average_pool")
    config, tokens = spec.config(window=(2, 2), uneven="pad"), TokenSpec(Grid(2, 3), 2)
    site = BlockSite(inputs={"input": tokens}, plan=spec.plan(config, {"input": tokens}, None))
    coverage_BN = torch.tensor([[1.0, 0.5, 1.0, 0.0, 0.0, 0.5]])
    pooled = registry.factory(spec)(config, site)(Tokens(torch.ones(1, 6, 2), Grid(2, 3), coverage_BN=coverage_BN))
    assert pooled.coverage_BN.tolist() == [[0.375, 0.375]]
