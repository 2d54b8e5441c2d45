"""Injectors put vectors where they belong."""

from __future__ import annotations

import pytest
import torch

from fusionkit import registry
from fusionkit.errors import ShapeError
from fusionkit.geometry import Grid, LayerStackSpec, TokenSpec
from fusionkit.plugin import BlockSite


def injector(name: str):
    spec = registry.spec("injectors", name)
    return registry.factory(spec)(spec.config(), BlockSite(address="injectors.visual"))


EMBEDS = torch.arange(2 * 4 * 2, dtype=torch.float32).reshape(2, 4, 2)
MASK = torch.tensor([[False, True, True, False], [True, False, False, False]])
VISUAL = torch.tensor([[100.0, 101.0], [200.0, 201.0], [300.0, 301.0]])


def test_replace():
    expected = EMBEDS.clone()
    expected[0, 1], expected[0, 2], expected[1, 0] = VISUAL
    out = injector("replace")(EMBEDS, VISUAL, MASK)
    assert torch.equal(out, expected)
    assert torch.equal(EMBEDS, torch.arange(16.0).reshape(2, 4, 2))


def test_add():
    expected = EMBEDS.clone()
    expected[0, 1] += VISUAL[0]
    expected[0, 2] += VISUAL[1]
    expected[1, 0] += VISUAL[2]
    assert torch.equal(injector("add")(EMBEDS, VISUAL, MASK), expected)


@pytest.mark.parametrize("name", ["replace", "add"])
def test_the_type_is_that_of_the_embeddings(name):
    out = injector(name)(EMBEDS.bfloat16(), VISUAL, MASK)
    assert out.dtype == torch.bfloat16


def test_gradients_of_replaced_embeddings_are_zero():
    embeds = EMBEDS.clone().requires_grad_()
    visual = VISUAL.clone().requires_grad_()
    injector("replace")(embeds, visual, MASK).sum().backward()
    assert torch.equal(embeds.grad, (~MASK)[..., None].expand(2, 4, 2).float())
    assert torch.equal(visual.grad, torch.ones(3, 2))


@pytest.mark.parametrize("name", ["replace", "add"])
@pytest.mark.parametrize(
    ("visual", "mask", "text"),
    [
        (VISUAL[:2], MASK, "injectors.visual: 3 <image> positions for 2 visual vectors"),
        (torch.cat((VISUAL, VISUAL)), MASK, "injectors.visual: 3 <image> positions for 6 visual vectors"),
        (torch.ones(3, 5), MASK, "injectors.visual: visual vectors have width 5, embeddings 2"),
        (VISUAL, MASK[:, :3], r"expected a mask of shape \(2, 4\), got \(2, 3\)"),
    ],
)
def test_mismatches_are_refused(name, visual, mask, text):
    with pytest.raises(ShapeError, match=text):
        injector(name)(EMBEDS, visual, mask)


def test_the_plan_wants_the_width_of_the_language_model():
    spec = registry.spec("injectors", "replace")
    tokens = TokenSpec(Grid(2, 2), 16)
    assert spec.plan(spec.config(), {"input": tokens}, 16).main == tokens
    with pytest.raises(ShapeError, match=r"visual tokens have width 16, the language model 24 .*width: 24"):
        spec.plan(spec.config(), {"input": tokens}, 24)
    with pytest.raises(ShapeError, match="expected tokens, got 2 layers"):
        spec.plan(spec.config(), {"input": LayerStackSpec((1, 2), Grid(2, 2), 16)}, 16)
