"""Connectors against plain, slow references in float64, and against what they must refuse."""

from __future__ import annotations

import copy
import json
import math
import re
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from fusionkit import registry
from fusionkit.errors import ShapeError
from fusionkit.geometry import FULL, Frame, Grid, LayerStackSpec, TokenSpec
from fusionkit.ops.attention import use_attention_backend
from fusionkit.ops.tokens import Tokens
from fusionkit.plugin import BlockSite, input_names
from fusionkit.testing import fakes

QUERY, MEMORY = TokenSpec(Grid(4, 6), 16), TokenSpec(Grid(3, 3), 8)


def configured(name: str, **options: Any):
    spec = registry.spec("connectors", name)
    return spec, spec.config.model_validate_json(json.dumps(options))


def planned(name: str, shapes: dict[str, TokenSpec], target: int | None = None, **options: Any):
    spec, config = configured(name, **options)
    return spec.plan(config, {key: shapes[source] for key, source in input_names(config).items()}, target)


def block(name: str, shapes: dict[str, TokenSpec] | None = None, **options: Any):
    shapes = shapes or {"a": QUERY, "b": MEMORY}
    spec, config = configured(name, **options)
    named = {key: shapes[source] for key, source in input_names(config).items()}
    torch.manual_seed(0)
    plan = spec.plan(config, named, None)
    return registry.factory(spec)(config, BlockSite(address="fusion.align", inputs=named, plan=plan)).eval()


def rgca(**options: Any):
    """A rope_cross_attention in float64, gate open."""
    return block(
        "rope_cross_attention", **{"query": "a", "memory": "b", "heads": 2, "gate_init": 0.5, **options}
    ).double()


def tokens(spec: TokenSpec, seed: int = 0, **changes: Any) -> Tokens:
    made = fakes.tokens(spec, 2, seed)
    return made._replace(x_BND=made.x_BND.double(), **changes)


# ------------------------------------------------------------------------------------- rope_cross_attention
def slow_rgca(module, query: Tokens, memory: Tokens, *, heads: int, kv_heads: int, rope: bool, radius=None) -> Tensor:
    """Eq. 5-8 one crop, one query, one head, one pair of channels at a time."""
    attention = module.attention
    width = attention.head_width
    cells = {axis: max(getattr(t.grid, axis) for t in (query, memory)) for axis in ("height", "width")}
    count = width // 4

    def wavelength(axis: str, j: int) -> float:
        shortest, longest = 2 / cells[axis], 2.0
        return longest if count == 1 else shortest * (longest / shortest) ** (j / (count - 1))

    def turned(vector: Tensor, y: float, x: float) -> Tensor:
        if not rope:
            return vector
        out = torch.empty_like(vector)
        for j in range(width // 2):
            axis, place = ("height", y) if j < count else ("width", x)
            angle = 2 * math.pi * place / wavelength(axis, j % count)
            a, b = vector[j], vector[j + width // 2]
            out[j] = a * math.cos(angle) - b * math.sin(angle)
            out[j + width // 2] = b * math.cos(angle) + a * math.sin(angle)
        return out

    out = query.x_BND.clone()
    at_query, at_memory = list(FULL.cell_centres(query.grid)), list(FULL.cell_centres(memory.grid))
    for b in range(len(out)):
        asks, holds = module.norm_query(query.x_BND[b]), module.norm_memory(memory.x_BND[b])
        q, k, v = attention.query(asks), attention.key(holds), attention.value(holds)
        for n, here in enumerate(at_query):
            seen = [
                m
                for m, there in enumerate(at_memory)
                if (radius is None or math.dist(here, there) <= radius + 1e-9)
                and (memory.valid_BN is None or memory.valid_BN[b, m])
            ]
            if not seen:
                continue
            parts = []
            for h in range(heads):
                mine = slice(h * width, (h + 1) * width)
                theirs = slice(h * kv_heads // heads * width, (h * kv_heads // heads + 1) * width)
                turned_q = turned(q[n, mine], *here)
                logits = torch.stack([turned_q @ turned(k[m, theirs], *at_memory[m]) for m in seen]) / math.sqrt(width)
                parts.append(torch.softmax(logits, 0) @ v[seen, theirs])
            out[b, n] += math.tanh(module.gate.item()) * attention.output(torch.cat(parts))
    return out


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rope": None},
        {"heads": 4, "kv_heads": 2, "bias": True},
        {"heads": 4, "kv_heads": 1, "head_width": 8},
        {"radius": 0.3, "bias": True},
    ],
    ids=["plain", "no_rope", "grouped", "own_head_width", "radius"],
)
@pytest.mark.parametrize("padded", [False, True])
def test_rgca_is_its_equation(options, padded):
    module, query, memory = rgca(**options), tokens(QUERY), tokens(MEMORY, 1)
    if padded:
        valid = torch.ones(2, 9, dtype=torch.bool)
        valid[0, [1, 5]] = False
        memory = memory._replace(valid_BN=valid)
    heads = options.get("heads", 2)
    with torch.no_grad():
        expected = slow_rgca(
            module,
            query,
            memory,
            heads=heads,
            kv_heads=options.get("kv_heads", heads),
            rope="rope" not in options,
            radius=options.get("radius"),
        )
        found = module(query, memory).x_BND
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    assert not torch.equal(found, query.x_BND)


def test_rgca_backends_agree():
    module, query, memory = rgca(radius=0.3), tokens(QUERY), tokens(MEMORY, 1)
    with torch.no_grad():
        expected = module(query, memory).x_BND
        use_attention_backend(module, "eager")
        assert module.attention.attention_backend == "eager"
        torch.testing.assert_close(module(query, memory).x_BND, expected, atol=1e-13, rtol=0)


def test_rgca_starts_as_the_identity_and_its_gate_learns():
    module = rgca(gate_init=0.0)
    query, memory = tokens(QUERY), tokens(MEMORY, 1)
    out = module(query, memory).x_BND
    assert torch.equal(out, query.x_BND)
    out.square().sum().backward()
    assert module.gate.grad.abs() > 0


def test_rgca_query_without_memory_in_radius_is_unchanged_bit_for_bit():
    """With an output bias too: it must not leak into queries that attended to nothing."""
    module, query, memory = rgca(radius=0.1, bias=True), tokens(QUERY), tokens(MEMORY, 1)
    torch.nn.init.ones_(module.attention.output.bias)
    there = list(FULL.cell_centres(MEMORY.grid))
    alone = [min(math.dist(here, at) for at in there) > 0.1 for here in FULL.cell_centres(QUERY.grid)]
    assert 0 < sum(alone) < len(alone)
    with torch.no_grad():
        changed = (module(query, memory).x_BND != query.x_BND).any(-1)
    assert torch.equal(changed, ~torch.tensor(alone).expand(2, -1))


def test_rgca_crop_whose_memory_is_all_padding_is_unchanged():
    module, query = rgca(bias=True), tokens(QUERY)
    memory = tokens(MEMORY, 1, valid_BN=torch.tensor([[True] * 9, [False] * 9]))
    memory.x_BND[1] = math.nan
    with torch.no_grad():
        out = module(query, memory).x_BND
    assert torch.equal(out[1], query.x_BND[1])
    assert not torch.equal(out[0], query.x_BND[0])


def test_rgca_reads_places_from_frames_and_not_from_rows():
    """Memory that covers a quarter of the crop is attended to as if it were the quarter's part of a full grid."""
    module, query = rgca(radius=0.15), tokens(QUERY)
    quarter = tokens(MEMORY, 1, frame=Frame(0.0, 0.0, 0.5, 0.5))
    with torch.no_grad():
        changed = (module(query, quarter).x_BND != query.x_BND).any(-1)[0].reshape(4, 6)
    assert changed[:2, :3].all()
    assert not changed[3].any()
    assert not changed[:, 5].any()


def test_rgca_tables_are_made_once_per_grid_and_dropped_on_a_move(monkeypatch):
    from fusionkit.blocks.connectors import rope_cross_attention

    calls = []
    original = rope_cross_attention.grid_coordinates
    monkeypatch.setattr(rope_cross_attention, "grid_coordinates", lambda *a: calls.append(a) or original(*a))
    module, query, memory = rgca(radius=0.3), tokens(QUERY), tokens(MEMORY, 1)
    with torch.inference_mode():
        module(query, memory)
    assert len(calls) == 4  # phases and mask, for query and memory
    module(query, memory).x_BND.sum().backward()  # tables first made in inference mode serve training
    assert len(calls) == 4
    module(tokens(TokenSpec(Grid(2, 2), 16)), memory)
    assert len(calls) == 8
    copy.deepcopy(module)(query, memory)
    assert len(calls) == 8
    module.to(torch.float32)
    module(*(t._replace(x_BND=t.x_BND.float()) for t in (query, memory)))
    assert len(calls) == 12


def test_rgca_has_no_tables_in_its_state():
    module = rgca(radius=0.3)
    module(tokens(QUERY), tokens(MEMORY))
    assert not list(module.buffers())
    assert set(module.state_dict()) == {
        "gate",
        *(f"norm_{side}.{name}" for side in ("query", "memory") for name in ("weight", "bias")),
        *(f"attention.{name}.weight" for name in ("query", "key", "value", "output")),
    }


@pytest.mark.parametrize(
    ("options", "field", "text"),
    [
        ({"heads": 5}, "heads", "5 heads do not divide the query width 16 (use 2 or 4 or 8)"),
        ({"heads": 8}, "heads", "heads of 2 cannot be rotated on two axes (the head width must be a multiple of 4"),
        ({"heads": 4, "kv_heads": 3}, "kv_heads", "3 kv_heads do not divide 4 heads (use 1 or 2 or 4)"),
        ({"heads": 4, "head_width": 6}, "head_width", "heads of 6 cannot be rotated"),
    ],
)
def test_rgca_plan_errors(options, field, text):
    with pytest.raises(ShapeError, match=re.escape(text)) as caught:
        planned("rope_cross_attention", {"a": QUERY, "b": MEMORY}, query="a", memory="b", **options)
    assert caught.value.field == field


def test_rgca_refuses_layers_and_joined_grids():
    stack = LayerStackSpec((1, 2), Grid(3, 3), 8)
    with pytest.raises(ShapeError, match="'memory' is 2 layers of 3x3 tokens of width 8; expected tokens"):
        planned("rope_cross_attention", {"a": QUERY, "b": stack}, query="a", memory="b", heads=2)
    double = TokenSpec(Grid(3, 3), 8, copies=2)
    with pytest.raises(ShapeError, match="'memory' is 2x3x3 tokens of width 8; positions need one grid"):
        planned("rope_cross_attention", {"a": QUERY, "b": double}, query="a", memory="b", heads=2)
    # Without positions the order of tokens does not matter, so two grids in a row will do.
    assert planned("rope_cross_attention", {"a": QUERY, "b": double}, query="a", memory="b", heads=2, rope=None)


def test_rgca_refuses_another_width_at_run_time():
    with pytest.raises(ShapeError, match=r"fusion\.align: expected tokens of width 8, got 16"):
        rgca()(tokens(QUERY), tokens(QUERY))


def test_wavelengths_can_be_set():
    near, far = rgca(rope={"longest": 0.5}), rgca(rope={"longest": 8.0})
    far.load_state_dict(near.state_dict())
    query, memory = tokens(QUERY), tokens(MEMORY, 1)
    assert not torch.allclose(near(query, memory).x_BND, far(query, memory).x_BND)


# ----------------------------------------------------------------------------------- released variant: plan
def test_released_default_counts_of_the_7b_model():
    """59.2 M parameters, less the 76 frequencies of the time axis and the 8 unused distance weights."""
    plan = planned(
        "rope_cross_attention_released",
        {"a": TokenSpec(Grid(12, 12), 1152), "b": TokenSpec(Grid(7, 7), 1024)},
        3584,
        query="a",
        memory="b",
    )
    assert plan.main == TokenSpec(Grid(12, 12), 3584)
    released = (1152 + 1024 + 2) * 3584 + 4 * 3584 + 4 * (3584 * 3584 + 3584) + 76 + 74 + 74 + 8 + 1
    assert plan.params == released - 76 - 8
    assert round(plan.params / 1e6, 1) == 59.2


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"width": 30, "heads": 4}, "4 heads do not divide the width 30 into heads of even width (use 3 or 5)"),
        ({"width": 16, "heads": 4}, "heads of 4 are too narrow for three rotary axes"),
        ({"width": 15, "heads": 1}, "use an even width"),
    ],
)
def test_released_plan_errors(options, text):
    with pytest.raises(ShapeError, match=re.escape(text.split(" (")[0])) as caught:
        planned("rope_cross_attention_released", {"a": QUERY, "b": MEMORY}, query="a", memory="b", **options)
    assert caught.value.field == "heads"


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_released_queries_out_of_reach_still_attend_under_autocast(dtype, backend):
    """The floor of the mask must not become infinite in float16, where rows of nothing else are 0 or NaN."""
    module = block(
        "rope_cross_attention_released", query="a", memory="b", heads=2, width=24, radius=0.05, gate_init=0.5
    )
    use_attention_backend(module, backend)
    query, memory = fakes.tokens(QUERY, 2, 0), fakes.tokens(MEMORY, 2, 1)
    memory = memory._replace(valid_BN=torch.arange(9).expand(2, -1) < 7)
    with torch.no_grad():
        plain = module(query, memory).x_BND
        with torch.autocast("cpu", dtype):
            found = module(query, memory).x_BND
        residual = module.norm_query(module.project_query(query.x_BND))
    update, expected = found - residual, plain - residual
    # float16 cannot sink so deep that the differences between logits vanish; without an update this would be 1.
    assert (update - expected).norm() <= 0.3 * expected.norm()


# ------------------------------------------------------------------------- concat, interleave, weighted_sum
A, B = TokenSpec(Grid(2, 2), 3), TokenSpec(Grid(2, 2), 5)
ONES, TWOS = TokenSpec(Grid(2, 2), 3), TokenSpec(Grid(2, 2), 3)


def pair(first: TokenSpec, second: TokenSpec) -> dict[str, Tokens]:
    return {"a": fakes.tokens(first, 2, 0), "b": fakes.tokens(second, 2, 1)}


def test_concat_channels():
    given = pair(A, B)
    out = block("concat", {"a": A, "b": B}, inputs=["b", "a"])(**given)
    assert torch.equal(out.x_BND, torch.cat((given["b"].x_BND, given["a"].x_BND), -1))
    assert out.spec == TokenSpec(Grid(2, 2), 8)


def test_concat_tokens_and_validity():
    given = pair(ONES, TWOS)
    valid = torch.tensor([[True, False, True, True]] * 2)
    given["b"] = given["b"]._replace(valid_BN=valid)
    out = block("concat", {"a": ONES, "b": TWOS}, inputs=["a", "b"], axis="token")(**given)
    assert torch.equal(out.x_BND, torch.cat((given["a"].x_BND, given["b"].x_BND), 1))
    assert torch.equal(out.valid_BN, torch.cat((torch.ones(2, 4, dtype=torch.bool), valid), 1))
    assert out.spec == TokenSpec(Grid(2, 2), 3, copies=2)


def test_interleave():
    given = pair(ONES, TWOS)
    out = block("interleave", {"a": ONES, "b": TWOS}, inputs=["a", "b"])(**given)
    assert torch.equal(out.x_BND[:, 0::2], given["a"].x_BND)
    assert torch.equal(out.x_BND[:, 1::2], given["b"].x_BND)
    assert out.spec == TokenSpec(Grid(2, 2), 3, copies=2, interleaved=True)


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({}, (0.5, 0.5)),
        ({"weights": [0.75, 0.25]}, (0.75, 0.25)),
        ({"weights": [2.0, -1.0], "learn": "free"}, (2.0, -1.0)),
        ({"weights": [3.0, 1.0], "learn": "softmax"}, (0.75, 0.25)),
    ],
)
def test_weighted_sum(options, weights):
    given = pair(ONES, TWOS)
    out = block("weighted_sum", {"a": ONES, "b": TWOS}, inputs=["a", "b"], **options)(**given)
    torch.testing.assert_close(out.x_BND, weights[0] * given["a"].x_BND + weights[1] * given["b"].x_BND)


@pytest.mark.parametrize(
    ("name", "inputs", "options", "text"),
    [
        ("concat", (A, MEMORY), {}, "inputs need one grid, got a 2x2, b 3x3 (pool or resize to one grid first)"),
        ("concat", (A, B), {"axis": "token"}, "inputs need the same width, got a 3, b 5 (add a linear adapter"),
        ("interleave", (A, B), {}, "inputs need the same width"),
        ("weighted_sum", (A, B), {}, "inputs need the same width"),
        ("concat", (A, TokenSpec(Grid(2, 2), 3, copies=2)), {}, "inputs need the same order"),
        (
            "concat",
            (A, TokenSpec(Grid(2, 2), 3, copies=2, interleaved=True)),
            {"axis": "token"},
            "'b' is interleaved; no grid may follow on it",
        ),
        ("concat", (A, TokenSpec(Grid(2, 2), 3, Frame(0, 0, 0.5, 1))), {}, "inputs a, b cover different parts"),
    ],
)
def test_joining_plan_errors(name, inputs, options, text):
    with pytest.raises(ShapeError, match=re.escape(text)) as caught:
        planned(name, dict(zip("ab", inputs, strict=True)), inputs=["a", "b"], **options)
    assert caught.value.field == "inputs"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"inputs": ["a"]}, "at least 2 items"),
        ({"inputs": ["a", "a"]}, "inputs must be different"),
        ({"inputs": ["a", "b"], "weights": [1.0]}, r"one entry per input \(2\), got 1"),
        (
            {"inputs": ["a", "b"], "weights": [1.0, 0.0], "learn": "softmax"},
            "weights must be positive with learn softmax",
        ),
    ],
)
def test_weighted_sum_config_errors(options, text):
    with pytest.raises(ValidationError, match=text):
        configured("weighted_sum", **options)


def test_inputs_on_other_grids_are_refused_at_run_time():
    module = block("weighted_sum", {"a": ONES, "b": TWOS}, inputs=["a", "b"])
    with pytest.raises(ShapeError, match=r"fusion\.align: expected all inputs on the grid 2x2, got 1x4"):
        module(a=fakes.tokens(ONES), b=fakes.tokens(TokenSpec(Grid(1, 4), 3)))
