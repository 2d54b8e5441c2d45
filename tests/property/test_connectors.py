"""What connectors promise, for any grids, widths, heads and seeds."""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from fusionkit import registry
from fusionkit.geometry import FULL, Frame, Grid, TokenSpec
from fusionkit.ops.tokens import Tokens
from fusionkit.plugin import BlockSite
from fusionkit.testing import fakes, strategies

heads = st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 2)])
ropes = st.sampled_from([None, {}, {"coordinates": "corner_aligned"}, {"shortest": 1.0, "longest": 4.0}])
radii = st.none() | st.floats(0.05, 1.5)


def connector(query: TokenSpec, memory: TokenSpec, counts: tuple[int, int], seed: int, **options: Any):
    spec = registry.spec("connectors", "rope_cross_attention")
    given = {"query": "a", "memory": "b", "heads": counts[0], "kv_heads": counts[1], "head_width": 4, **options}
    config = spec.config.model_validate_json(json.dumps(given))
    inputs = {"query": query, "memory": memory}
    plan = spec.plan(config, inputs, None)
    torch.manual_seed(seed)
    return registry.factory(spec)(config, BlockSite(address="x", inputs=inputs, plan=plan)).eval(), plan


@given(strategies.token_specs(), strategies.token_specs(), heads, ropes, radii, st.booleans(), strategies.seeds)
def test_plan_is_what_comes_out(query, memory, counts, rope, radius, bias, seed):
    module, plan = connector(query, memory, counts, seed, rope=rope, radius=radius, bias=bias, gate_init=0.3)
    assert sum(p.numel() for p in module.parameters()) == plan.params
    out = module(fakes.tokens(query, 2, seed), fakes.tokens(memory, 2, seed + 1))
    assert out.spec == plan.main == query
    assert out.x_BND.isfinite().all()


@given(
    strategies.token_specs(),
    strategies.token_specs(),
    heads,
    ropes,
    radii,
    strategies.seeds,
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_a_gate_at_zero_is_the_identity(query, memory, counts, rope, radius, seed, dtype):
    module, _ = connector(query, memory, counts, seed, rope=rope, radius=radius, bias=True)
    module.to(dtype)
    asks, holds = (fakes.tokens(spec, 2, seed + i) for i, spec in enumerate((query, memory)))
    asks, holds = (t._replace(x_BND=t.x_BND.to(dtype)) for t in (asks, holds))
    assert torch.equal(module(asks, holds).x_BND, asks.x_BND)


@given(strategies.token_specs(), strategies.token_specs(), heads, ropes, radii, st.data())
def test_padded_memory_is_memory_that_is_not_there(query, memory, counts, rope, radius, data):
    """Keys marked invalid change nothing: the same as attending to each crop's valid keys alone, one at a time."""
    seed = data.draw(strategies.seeds)
    valid = torch.tensor([data.draw(st.lists(st.booleans(), min_size=memory.tokens, max_size=memory.tokens))])
    module, _ = connector(query, memory, counts, seed, rope=rope, radius=radius, gate_init=0.3, bias=True)
    asks, holds = fakes.tokens(query, 1, seed), fakes.tokens(memory, 1, seed + 1)
    with torch.no_grad():
        one, other = (
            module(asks, holds._replace(x_BND=torch.where(valid[..., None], holds.x_BND, junk), valid_BN=valid)).x_BND
            for junk in (torch.tensor(0.0), torch.tensor(math.inf))
        )
    assert torch.equal(one, other)
    if not valid.any():
        assert torch.equal(one, asks.x_BND)


@given(strategies.token_specs(), strategies.token_specs(), heads, ropes, st.floats(0.02, 1.5), strategies.seeds)
def test_queries_out_of_reach_are_unchanged_and_no_others(query, memory, counts, rope, radius, seed):
    module, _ = connector(query, memory, counts, seed, rope=rope, radius=radius, gate_init=0.3, bias=True)
    aligned = rope is not None and rope.get("coordinates") == "corner_aligned"

    def places(grid: Grid) -> list[tuple[float, float]]:
        if not aligned:
            return list(FULL.cell_centres(grid))
        rows, columns = (max(n - 1, 1) for n in (grid.height, grid.width))
        return [(r / rows, c / columns) for r in range(grid.height) for c in range(grid.width)]

    nearest = torch.tensor([min(math.dist(a, b) for b in places(memory.grid)) for a in places(query.grid)])
    assume(((nearest - radius).abs() > 1e-4).all())
    asks = fakes.tokens(query, 1, seed)
    with torch.no_grad():
        out = module(asks, fakes.tokens(memory, 1, seed + 1)).x_BND
    assert torch.equal((out != asks.x_BND).any(-1)[0], nearest < radius)


@given(strategies.grids(3), radii, strategies.seeds)
def test_only_the_frame_says_where_a_grid_is(half, radius, seed):
    """The upper half of a grid, as a grid of its own frame, is that grid with its lower half marked invalid."""
    whole = TokenSpec(Grid(2 * half.height, half.width), 8)
    upper = TokenSpec(half, 8, Frame(0.0, 0.0, 1.0, 0.5))
    query = TokenSpec(Grid(3, 3), 8)
    module, _ = connector(query, whole, (2, 2), seed, gate_init=0.3, radius=radius)
    asks, holds = fakes.tokens(query, 1, seed), fakes.tokens(whole, 1, seed + 1)
    valid = (torch.arange(whole.tokens) < half.tokens)[None]
    alone = Tokens(holds.x_BND[:, : half.tokens], upper.grid, upper.frame)
    with torch.no_grad():
        masked, apart = module(asks, holds._replace(valid_BN=valid)).x_BND, module(asks, alone).x_BND
    torch.testing.assert_close(apart, masked, atol=2e-6, rtol=2e-6)
