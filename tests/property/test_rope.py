"""What rotary positions promise, for any grid, frame and seed."""

from __future__ import annotations

import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from fusionkit.geometry import FULL, Grid
from fusionkit.ops.rope import (
    Phases,
    axis_wavelengths,
    grid_angles,
    grid_coordinates,
    rotate_half_split,
    rotate_interleaved,
)
from fusionkit.testing import strategies

CPU = torch.device("cpu")
layouts = st.sampled_from((rotate_half_split, rotate_interleaved))
# fp32 is for heads of unit scale, so logits of 8 channels
DTYPES = {torch.float64: 1e-12, torch.float32: 1e-5}


def phases(places, wavelengths, dtype) -> Phases:
    return Phases.of(grid_angles(places, wavelengths), dtype)


@given(
    strategies.grids(),
    strategies.grids(),
    st.tuples(*[st.floats(-2, 2)] * 2),
    strategies.seeds,
    layouts,
    st.sampled_from(list(DTYPES)),
)
def test_logits_depend_on_relative_position_only(query, memory, shift, seed, rotate, dtype):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(query.tokens, 8, generator=generator, dtype=torch.float64).to(dtype)
    k = torch.randn(memory.tokens, 8, generator=generator, dtype=torch.float64).to(dtype)
    wavelengths = axis_wavelengths([(query, FULL), (memory, FULL)], 2.0, 2.0, 2, CPU)
    of_query, of_memory = (grid_coordinates(grid, FULL, "cell_centres", CPU) for grid in (query, memory))
    moved = torch.tensor(shift, dtype=torch.float64)

    def logits(offset):
        turned_q = rotate(q, phases(of_query + offset, wavelengths, dtype))
        return turned_q @ rotate(k, phases(of_memory + offset, wavelengths, dtype)).T

    torch.testing.assert_close(logits(moved), logits(0), atol=DTYPES[dtype], rtol=DTYPES[dtype])


@given(strategies.grids(), strategies.frames(), strategies.seeds, layouts)
def test_rotation_keeps_norms(grid, frame, seed, rotate):
    x = torch.randn(grid.tokens, 8, generator=torch.Generator().manual_seed(seed))
    wavelengths = axis_wavelengths([(grid, frame)], 2.0, 2.0, 2, CPU)
    turned = rotate(x, phases(grid_coordinates(grid, frame, "cell_centres", CPU), wavelengths, torch.float32))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), atol=2e-6, rtol=2e-6)


@given(strategies.grids(), st.integers(1, 4))
def test_grids_share_phases_where_they_share_places(coarse, odd):
    """Centres of a grid are centres of the grid with 3, 5, ... times as many cells."""
    factor = 2 * odd + 1
    fine = Grid(coarse.height * factor, coarse.width * factor)
    wavelengths = axis_wavelengths([(coarse, FULL), (fine, FULL)], 2.0, 2.0, 4, CPU)
    of_coarse, of_fine = (
        grid_angles(grid_coordinates(grid, FULL, "cell_centres", CPU), wavelengths) for grid in (coarse, fine)
    )
    rows = torch.arange(coarse.height) * factor + odd
    columns = torch.arange(coarse.width) * factor + odd
    same = (rows[:, None] * fine.width + columns[None, :]).flatten()
    torch.testing.assert_close(of_fine[same], of_coarse, atol=1e-9, rtol=1e-12)


@given(strategies.grids(), strategies.seeds)
def test_rotation_is_no_identity(grid, seed):
    """A table of zeros would pass every test above."""
    assume(grid.tokens > 1)
    x = torch.randn(grid.tokens, 8, generator=torch.Generator().manual_seed(seed))
    places = grid_coordinates(grid, FULL, "cell_centres", CPU)
    turned = rotate_half_split(x, phases(places, axis_wavelengths([(grid, FULL)], 2.0, 2.0, 2, CPU), torch.float32))
    assert (turned - x).norm(dim=-1).min() > 1e-3
