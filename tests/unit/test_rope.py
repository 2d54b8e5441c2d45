"""Coordinates, wavelengths and rotations against arithmetic done by hand."""

from __future__ import annotations

import math

import pytest
import torch

from fusionkit.geometry import FULL, Frame, Grid
from fusionkit.ops.rope import (
    Phases,
    axis_wavelengths,
    geometric_wavelengths,
    grid_angles,
    grid_coordinates,
    pairwise_distance,
    rotate_half_split,
    rotate_interleaved,
    within_radius,
)

CPU = torch.device("cpu")


def test_cell_centres_are_those_of_the_frame():
    grid, frame = Grid(2, 3), Frame(0.5, 0.0, 1.0, 0.5)
    found = grid_coordinates(grid, frame, "cell_centres", CPU)
    assert found.dtype == torch.float64
    expected = torch.tensor(list(frame.cell_centres(grid)), dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-15, rtol=0)


def test_corner_aligned_cells_touch_the_border():
    found = grid_coordinates(Grid(3, 2), FULL, "corner_aligned", CPU)
    assert found.tolist() == [[0, 0], [0, 1], [0.5, 0], [0.5, 1], [1, 0], [1, 1]]
    assert grid_coordinates(Grid(1, 1), FULL, "corner_aligned", CPU).tolist() == [[0, 0]]


def test_wavelengths_are_geometric_from_two_cells_to_two_sides():
    y, x = axis_wavelengths([(Grid(12, 24), FULL), (Grid(7, 7), FULL)], 2.0, 2.0, 5, CPU)
    assert y[0].item() == pytest.approx(2 / 12)  # the finer grid counts
    assert x[0].item() == pytest.approx(2 / 24)
    for axis in (y, x):
        assert axis[-1].item() == pytest.approx(2.0)
        ratios = axis[1:] / axis[:-1]
        torch.testing.assert_close(ratios, ratios[:1].expand_as(ratios))


def test_wavelengths_count_cells_of_the_frame():
    (y, x) = axis_wavelengths([(Grid(4, 4), Frame(0, 0, 0.5, 1.0))], 2.0, 2.0, 3, CPU)
    assert x[0].item() == pytest.approx(2 * 0.5 / 4)
    assert y[0].item() == pytest.approx(2 / 4)


def test_a_single_wavelength_is_the_longest():
    assert geometric_wavelengths(0.1, 2.0, 1, CPU).tolist() == pytest.approx([2.0])


def test_rotation_is_a_complex_product():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    angle = torch.randn(5, 4, dtype=torch.float64)
    phases = Phases.of(angle, torch.float64)
    turn = torch.polar(torch.ones_like(angle), angle)

    half = torch.complex(x[..., :4], x[..., 4:]) * turn
    torch.testing.assert_close(rotate_half_split(x, phases), torch.cat((half.real, half.imag), -1))

    pairs = torch.complex(x[..., 0::2], x[..., 1::2]) * turn
    torch.testing.assert_close(rotate_interleaved(x, phases), torch.view_as_real(pairs).flatten(-2))


def test_the_two_layouts_differ_by_an_order_of_channels():
    """Weights move from one layout to the other by permuting the rows of the projections."""
    torch.manual_seed(0)
    x = torch.randn(1, 2, 5, 12)
    phases = Phases.of(torch.randn(5, 6), torch.float32)
    order = torch.cat((torch.arange(0, 12, 2), torch.arange(1, 12, 2)))
    assert torch.equal(rotate_interleaved(x, phases)[..., order], rotate_half_split(x[..., order], phases))


def test_half_precision_is_rotated_in_float32():
    torch.manual_seed(0)
    x = torch.randn(1, 1, 4, 8).bfloat16()
    phases = Phases.of(torch.randn(4, 4, dtype=torch.float64) * 50, torch.float32)
    found = rotate_half_split(x, phases)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, rotate_half_split(x.float(), phases).bfloat16())


def test_angles_are_y_then_x():
    wavelengths = (torch.tensor([0.5, 1.0]), torch.tensor([0.25, 2.0]))
    angle = grid_angles(torch.tensor([[0.5, 0.25]]), wavelengths)
    assert angle[0].tolist() == pytest.approx([2 * math.pi, math.pi, 2 * math.pi, 0.25 * math.pi])


def test_the_rim_is_inside_the_radius():
    """Cells at 1/12 steps: distance 3/12 computed in floating point must not fall outside a radius of 0.25."""
    places = grid_coordinates(Grid(12, 12), FULL, "cell_centres", CPU)
    near = within_radius(places, places, 0.25)
    steps = torch.cdist(
        torch.round(places * 12 - 0.5), torch.round(places * 12 - 0.5), compute_mode="donot_use_mm_for_euclid_dist"
    )
    assert torch.equal(near, steps <= 3 + 1e-9)
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(within_radius(places.to(dtype), places.to(dtype), 0.25), near)


def test_distances_are_exact_beyond_25_points():
    """torch.cdist switches to a product form there, which rounds; ours does not."""
    places = grid_coordinates(Grid(6, 6), FULL, "cell_centres", CPU)
    found = pairwise_distance(places, places)
    assert torch.equal(found.diagonal(), torch.zeros(36, dtype=torch.float64))
    assert found[0, 1].item() == pytest.approx(1 / 6, abs=1e-15)
