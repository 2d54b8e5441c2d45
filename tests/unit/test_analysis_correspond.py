"""Matching tokens by place: exact where a linear map exists, chance where there is none."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fusionkit.analysis.matching import Bridge, Shared, equations, score
from fusionkit.geometry import Grid


@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 7), st.integers(1, 7))
def test_the_shared_frame_of_any_two_grids(h: int, w: int, k: int, v: int) -> None:
    a, b = Grid(h, w), Grid(k, v)
    shared = Shared.of(a, b)
    assert shared.right_NM[torch.arange(a.tokens), shared.nearest_N].all(), "the nearest cell is right"
    assert torch.equal(Shared.of(b, a).right_NM, shared.right_NM.T)
    assert 0 < shared.chance <= 1
    if a == b:
        assert shared.nearest_N.tolist() == list(range(a.tokens))


def test_right_is_within_one_cell_of_the_coarser_grid() -> None:
    shared = Shared.of(Grid(1, 4), Grid(1, 4))
    assert shared.right_NM.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]]
    assert shared.chance == 10 / 16


def test_scores_of_perfect_and_of_mirrored_matches() -> None:
    shared = Shared.of(Grid(1, 6), Grid(1, 6))
    found = score(torch.eye(6), shared)
    assert found == {"right": 1, "mutual": 1, "mutual right": 1, "distance": 0}
    mirrored = score(torch.eye(6).flip(0), shared)
    assert mirrored["mutual"] == 1
    assert mirrored["right"] == pytest.approx(2 / 6), "only the two in the middle are within a cell"
    all_to_one = torch.zeros(6, 6)
    all_to_one[:, 0] = 1
    assert score(all_to_one, shared)["mutual"] == pytest.approx(1 / 6)


def fitted(a: Tensor, b: Tensor, shared: Shared) -> Bridge:
    sums: dict[str, Tensor] = {}
    for first in range(0, len(a), 3):
        for name, value in equations(a[first : first + 3], b[first : first + 3], shared).items():
            sums[name] = sums.get(name, 0) + value.double()
    return Bridge.solve(sums, 1e-6)


def right(bridge: Bridge, a: Tensor, b: Tensor, shared: Shared) -> float:
    shares = [score(bridge.similarity(x, y), shared)["right"] for x, y in zip(a, b, strict=True)]
    return float(torch.tensor(shares).mean())


def test_a_rotation_of_the_tokens_is_found_and_another_pictures_tokens_match_by_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    grid = Grid(6, 6)
    shared = Shared.of(grid, grid)
    a = torch.randn(24, 36, 16, generator=generator)
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=generator)).Q
    b = (a - a.mean(-1, keepdim=True)) @ rotation
    bridge = fitted(a[:12], b[:12], shared)
    assert right(bridge, a[12:], b[12:], shared) > 0.99
    other = right(bridge, a[12:], b[12:].roll(1, 0), shared)
    assert other == pytest.approx(shared.chance, abs=0.06)
    unrelated = torch.randn(24, 36, 16, generator=generator)
    nothing = fitted(a[:12], unrelated[:12], shared)
    assert right(nothing, a[12:], unrelated[12:], shared) == pytest.approx(shared.chance, abs=0.06)


def test_a_code_of_position_alone_shows_up_in_the_control() -> None:
    generator = torch.Generator().manual_seed(0)
    shared = Shared.of(Grid(6, 6), Grid(6, 6))
    place = torch.randn(36, 16, generator=generator)
    a = place + 0.05 * torch.randn(12, 36, 16, generator=generator)
    bridge = fitted(a[:6], a[:6], shared)
    assert right(bridge, a[6:], a[6:].roll(1, 0), shared) > 0.9
