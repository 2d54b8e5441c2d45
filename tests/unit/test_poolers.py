"""Poolers against plain, slow references, with and without padding."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fusionkit import registry
from fusionkit.errors import ShapeError
from fusionkit.geometry import Frame, Grid, LayerStackSpec, TokenSpec
from fusionkit.ops.tokens import Tokens
from fusionkit.ops.windows import split_windows
from fusionkit.plugin import BlockSite
from fusionkit.testing import fakes

EVEN, ODD = TokenSpec(Grid(4, 6), 8), TokenSpec(Grid(5, 7), 8)


def planned(name: str, spec: Any, **options: Any):
    block = registry.spec("poolers", name)
    config = block.config.model_validate_json(json.dumps(options))
    return block, config, block.plan(config, {"input": spec}, None)


def pooler(name: str, spec: TokenSpec, **options: Any):
    block, config, plan = planned(name, spec, **options)
    torch.manual_seed(0)
    return registry.factory(block)(config, BlockSite(address="fusion.pool", inputs={"input": spec}, plan=plan)).double()


def tokens(spec: TokenSpec, valid: Tensor | None = None) -> Tokens:
    made = fakes.tokens(spec)
    return made._replace(x_BND=made.x_BND.double(), valid_BN=valid)


def some_valid(spec: TokenSpec) -> Tensor:
    """Scattered padding, and the first 2x2 window of the second crop without a real token."""
    valid = torch.rand(2, spec.tokens, generator=torch.Generator().manual_seed(3)) > 0.3
    valid[1, [0, 1, spec.grid.width, spec.grid.width + 1]] = False
    return valid


def members(grid: Grid, window: tuple[int, int], w: int) -> list[tuple[int, int]]:
    """(row, column) of the places of window w, those beyond the grid included."""
    columns = -(-grid.width // window[1])
    top, left = w // columns * window[0], w % columns * window[1]
    return [(top + r, left + c) for r in range(window[0]) for c in range(window[1])]


def real(given: Tokens, window: tuple[int, int], b: int, w: int) -> list[Tensor]:
    """The real tokens of window w of crop b."""
    found = []
    for row, column in members(given.grid, window, w):
        n = row * given.grid.width + column
        inside = row < given.grid.height and column < given.grid.width
        if inside and (given.valid_BN is None or given.valid_BN[b, n]):
            found.append(given.x_BND[b, n])
    return found


def slow_attention(module, inside: list[Tensor]) -> Tensor:
    x = torch.stack(inside)
    q, k, v = module.query(x.mean(0)), module.key(x), module.value(x)
    parts = []
    for h in range(module.heads):
        mine = slice(h * module.head_width, (h + 1) * module.head_width)
        g = h * module.kv_heads // module.heads
        theirs = slice(g * module.head_width, (g + 1) * module.head_width)
        parts.append(torch.softmax(k[:, theirs] @ q[mine] / math.sqrt(module.head_width), 0) @ v[:, theirs])
    return module.output(torch.cat(parts))


@pytest.mark.parametrize("name", ["average_pool", "attention_pool"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("spec", "uneven"), [(EVEN, "error"), (ODD, "pad")])
def test_pools_are_their_definition(name, padded, spec, uneven):
    options = {"heads": 4, "kv_heads": 2} if name == "attention_pool" else {}
    module = pooler(name, spec, uneven=uneven, **options)
    given = tokens(spec, some_valid(spec) if padded else None)
    with torch.no_grad():
        out = module(given)
        for b in range(2):
            for w in range(out.grid.tokens):
                inside = real(given, (2, 2), b, w)
                if not inside:
                    assert padded
                    assert torch.equal(out.x_BND[b, w], torch.zeros(8, dtype=torch.float64))
                    assert not out.valid_BN[b, w]
                    continue
                expected = torch.stack(inside).mean(0) if name == "average_pool" else slow_attention(module, inside)
                torch.testing.assert_close(out.x_BND[b, w], expected, atol=1e-13, rtol=1e-12)
                assert out.valid_BN is None or out.valid_BN[b, w]
    assert (out.valid_BN is None) == (not padded)


@pytest.mark.parametrize("name", ["average_pool", "attention_pool", "pixel_shuffle"])
def test_padding_may_hold_anything(name):
    options = {"heads": 4} if name == "attention_pool" else {}
    module, valid = pooler(name, EVEN, **options), some_valid(EVEN)
    clean, dirty = tokens(EVEN, valid), tokens(EVEN, valid)
    clean.x_BND[~valid] = 0
    dirty.x_BND[~valid] = math.nan
    with torch.no_grad():
        assert torch.equal(module(clean).x_BND, module(dirty).x_BND)


def test_attended_padding_is_another_number():
    """`pad_attended` exists for parity; it is not what `pad` does."""
    kept = pooler("attention_pool", ODD, heads=2, uneven="pad")
    attended = pooler("attention_pool", ODD, heads=2, uneven="pad_attended")
    attended.load_state_dict(kept.state_dict())
    with torch.no_grad():
        one, other = kept(tokens(ODD)).x_BND, attended(tokens(ODD)).x_BND
    differs = (one != other).any(-1)[0].reshape(3, 4)
    assert not differs[:2, :3].any()
    assert differs[2].all()
    assert differs[:, 3].all()


def test_attended_padding_and_invalid_tokens_do_not_go_together():
    module = pooler("attention_pool", ODD, heads=2, uneven="pad_attended")
    with pytest.raises(ShapeError, match=r"fusion\.pool: uneven pad_attended cannot be combined with invalid tokens"):
        module(tokens(ODD, some_valid(ODD)))


@pytest.mark.parametrize("window", [(2, 2), (2, 3), (4, 1)])
def test_pixel_shuffle_orders(window):
    rows, columns = window
    given = tokens(EVEN)
    x_BCHW = given.x_BND.transpose(1, 2).reshape(2, 8, 4, 6)
    patches_BPW = F.unfold(x_BCHW, window, stride=window)  # channel, row, column
    by_channel = pooler("pixel_shuffle", EVEN, window=list(window), order="channel_row_column")(given).x_BND
    assert torch.equal(by_channel, patches_BPW.transpose(1, 2))
    by_place = pooler("pixel_shuffle", EVEN, window=list(window))(given).x_BND
    expected = by_channel.reshape(2, -1, 8, rows * columns).transpose(2, 3).flatten(2)
    assert torch.equal(by_place, expected)
    if rows == columns:
        theirs = F.pixel_unshuffle(x_BCHW, rows).flatten(2).transpose(1, 2)
        assert torch.equal(by_channel, theirs)


def test_windows_of_flags_keep_their_type():
    flags = torch.ones(1, 35, 1, dtype=torch.bool)
    windows = split_windows(flags, Grid(5, 7), (2, 2))
    assert windows.dtype == torch.bool
    assert int(windows.sum()) == 35


def test_a_padded_grid_reaches_past_its_frame():
    spec = TokenSpec(Grid(5, 7), 8, Frame(0.5, 0.0, 1.2, 1.0))
    plan = planned("average_pool", spec, uneven="pad")[2]
    assert plan.main.grid == Grid(3, 4)
    frame = plan.main.frame
    assert (frame.x0, frame.y0) == (0.5, 0.0)
    assert (frame.x1, frame.y1) == (pytest.approx(0.5 + 0.7 * 8 / 7), pytest.approx(6 / 5))
    # The centre of the first window is where its four cells' centres meet.
    first, *_ = frame.cell_centres(plan.main.grid)
    cells = list(spec.frame.cell_centres(spec.grid))
    around = [cells[0], cells[1], cells[7], cells[8]]
    assert first == pytest.approx(tuple(sum(axis) / 4 for axis in zip(*around, strict=True)))


@pytest.mark.parametrize(
    ("name", "spec", "options", "field", "text"),
    [
        (
            "average_pool",
            ODD,
            {},
            "window",
            "window 2x2 does not tile the grid 5x7 (use a window whose rows divide 5 and",
        ),
        ("pixel_shuffle", ODD, {}, "window", "window 2x2 does not tile the grid 5x7"),
        ("attention_pool", ODD, {"heads": 2}, "window", "window 2x2 does not tile the grid 5x7"),
        ("attention_pool", EVEN, {"heads": 3}, "heads", "3 heads do not divide the width 8 (use 1 or 2 or 4)"),
        ("attention_pool", EVEN, {"heads": 4, "kv_heads": 3}, "kv_heads", "3 kv_heads do not divide 4 heads"),
        ("average_pool", TokenSpec(Grid(4, 4), 8, copies=2), {}, "window", "cannot pool 2x4x4 tokens of width 8"),
        ("average_pool", LayerStackSpec((1, 2), Grid(2, 2), 8), {}, "input", "expected tokens, got 2 layers"),
    ],
)
def test_plan_errors(name, spec, options, field, text):
    with pytest.raises(ShapeError, match=re.escape(text)) as caught:
        planned(name, spec, **options)
    assert caught.value.field == field


def test_flagship_pool_costs():
    """The released pooling: 24x24 tokens of width 1152, 16 heads with biases, per crop."""
    plan = planned("attention_pool", TokenSpec(Grid(24, 24), 1152), heads=16)[2]
    assert plan.main == TokenSpec(Grid(12, 12), 1152)
    assert plan.params == 4 * (1152 * 1152 + 1152)
