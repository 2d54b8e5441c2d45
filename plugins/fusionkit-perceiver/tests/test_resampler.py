"""The equation by an independent reference in float64, what positions do, and what the planner refuses."""

from __future__ import annotations

import math

import pytest
import torch
from fusionkit_perceiver.resampler import Resampler, place_code
from fusionkit_perceiver.spec import FREQUENCIES, RESAMPLER, ResamplerConfig, plan
from torch import Tensor

import fusionkit
from fusionkit.plugin import BlockSite, Grid, LayerStackSpec, ShapeError, Tokens, TokenSpec

SPECS = {"semantic": TokenSpec(Grid(2, 3), 8), "spatial": TokenSpec(Grid(3, 3), 12)}


def build(**settings: object) -> Resampler:
    config = ResamplerConfig(**{"inputs": ("semantic", "spatial"), "grid": (2, 2), "heads": 2, "width": 16, **settings})
    site = BlockSite(address="fusion.read", inputs=SPECS, plan=plan(config, SPECS, None))
    torch.manual_seed(0)
    module = Resampler(config, site).double().eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


def inputs(seed: int = 0) -> dict[str, Tokens]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: Tokens(torch.randn(2, spec.tokens, spec.width, generator=generator, dtype=torch.float64), spec.grid)
        for name, spec in SPECS.items()
    }


def normed(x: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
    spread = ((x - x.mean()) ** 2).mean()
    return (x - x.mean()) / (spread + norm.eps).sqrt() * norm.weight + norm.bias


def reference(module: Resampler, given: dict[str, Tokens], crop: int) -> Tensor:
    """Flamingo's equations for one crop, vector by vector."""
    memory = []
    for number, (name, spec) in enumerate(SPECS.items()):
        for token in range(spec.tokens):
            row, column = divmod(token, spec.grid.width)
            y, x = (row + 0.5) / spec.grid.height, (column + 0.5) / spec.grid.width
            angles = [math.pi * 2**f * place for place in (y, x) for f in range(FREQUENCIES)]
            code = torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles], dtype=torch.float64)
            vector = normed(given[name].x_BND[crop, token], module.norms[number])
            mapped = module.maps[number].weight @ vector + module.maps[number].bias
            memory.append(mapped + module.places.weight @ code + module.sources[number])
    latents = list(module.latents)
    width = len(latents[0])
    for block in module.blocks:
        queries = [normed(z, block.norm_latents) for z in latents]
        keys = [normed(m, block.norm_memory) for m in memory] + queries
        key_value = [block.key_value.weight @ k for k in keys]
        after = []
        for z, query in zip(latents, queries, strict=True):
            q, read = block.query.weight @ query, []
            for head in range(block.heads):
                part = slice(head * width // block.heads, (head + 1) * width // block.heads)
                logits = torch.stack([q[part] @ kv[:width][part] for kv in key_value]) / math.sqrt(width // block.heads)
                weights = logits.exp() / logits.exp().sum()
                read.append(sum(w * kv[width:][part] for w, kv in zip(weights, key_value, strict=True)))
            z = z + block.out.weight @ torch.cat(read)
            hidden = block.mlp[0].weight @ normed(z, block.norm_mlp)
            after.append(z + block.mlp[2].weight @ (hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))))
        latents = after
    return torch.stack([normed(z, module.norm) for z in latents])


@torch.no_grad()
def test_it_is_the_equation() -> None:
    module, given = build(), inputs()
    found = module(**given)
    assert (found.grid, found.x_BND.shape) == (Grid(2, 2), (2, 4, 16))
    for crop in range(2):
        gap = (found.x_BND[crop] - reference(module, given, crop)).abs().max()
        assert gap <= 2e-6, gap  # the position code is computed in float32


@torch.no_grad()
def test_where_a_token_is_matters() -> None:
    module, given = build(), inputs()
    moved = {**given, "semantic": given["semantic"].with_x(given["semantic"].x_BND.flip(1))}
    assert not torch.allclose(module(**given).x_BND, module(**moved).x_BND, atol=1e-3)


def test_the_code_tells_every_cell_of_a_fine_grid_apart() -> None:
    code = place_code(Tokens(torch.zeros(1, 32 * 32, 4), Grid(32, 32)))
    gaps = torch.cdist(code, code) + 10 * torch.eye(len(code))
    assert gaps.min() > 0.1


@pytest.mark.parametrize(
    ("settings", "specs", "words"),
    [
        ({"heads": 3}, SPECS, "3 heads do not divide the width 16"),
        ({}, {**SPECS, "spatial": LayerStackSpec((1, 2), Grid(3, 3), 12)}, "expected tokens"),
        ({}, {**SPECS, "spatial": TokenSpec(Grid(3, 3), 12, copies=2)}, "joined from 2 grids"),
    ],
)
def test_what_the_planner_refuses(settings: dict, specs: dict, words: str) -> None:
    config = ResamplerConfig(**{"inputs": ("semantic", "spatial"), "heads": 2, "width": 16, **settings})
    with pytest.raises(ShapeError, match=words):
        plan(config, specs, None)


def test_in_a_recipe_it_takes_the_width_of_the_language_model() -> None:
    recipe = fusionkit.load_recipe("builtin:tiny").canonical()
    recipe["fusion"] = {"read": {"type": RESAMPLER.name, "inputs": ["semantic", "spatial"], "grid": [3, 4], "heads": 4}}
    planned = fusionkit.plan(fusionkit.load_recipe(recipe))
    assert (str(planned.visual.grid), planned.visual.width) == ("3x4", planned.language_model.width)
    model = fusionkit.build(planned, device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == planned.parameters
