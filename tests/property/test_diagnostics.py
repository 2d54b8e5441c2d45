"""Diagnostics: what they measure, and what no orthogonal map can change."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fusionkit.errors import ShapeError
from fusionkit.ops.diagnostics import (
    effective_rank,
    gram_deviation,
    linear_cka,
    orthogonality,
    principal_angles,
    spectrum,
    token_cosine,
)
from fusionkit.ops.orthogonal import haar, orthogonal_matrices, skew_count

SEEDS = st.integers(0, 10**6)
WIDTHS = st.integers(2, 6)


def tokens(seed: int, width: int, count: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(width, width, generator=generator, dtype=torch.float64)  # directions of unequal size
    return torch.randn(2, count // 2, width, generator=generator, dtype=torch.float64) @ mixed + 1


def rotation(seed: int, width_in: int, width_out: int) -> torch.Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return haar(1, width_in, width_out)[0]


@given(seed=SEEDS, width=WIDTHS, extra=st.integers(0, 3))
def test_orthogonal_maps_leave_cka_angles_spectrum_and_rank_alone(seed: int, width: int, extra: int) -> None:
    """Square maps, and those that widen: before and after are the same numbers."""
    x, y = tokens(seed, width), tokens(seed + 1, width + 1)
    turned = x @ rotation(seed, width, width + extra).mT
    assert linear_cka(turned, y) == pytest.approx(linear_cka(x, y), abs=1e-10)
    # acos loses half the digits at angle 0
    torch.testing.assert_close(principal_angles(turned, y), principal_angles(x, y), rtol=0, atol=1e-6)
    torch.testing.assert_close(spectrum(turned)[:width], spectrum(x), rtol=0, atol=1e-9)
    assert effective_rank(turned) == pytest.approx(effective_rank(x), abs=1e-5)


@given(seed=SEEDS, width=WIDTHS)
def test_cka_has_no_gradient_in_the_map(seed: int, width: int) -> None:
    """The same formula, differentiable: as a loss it would teach an orthogonal map nothing."""
    x, y = (t.flatten(0, 1) - t.flatten(0, 1).mean(0) for t in (tokens(seed, width), tokens(seed + 1, width)))
    skew = torch.randn(1, skew_count(width), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    skew.requires_grad_()
    turned = x @ orthogonal_matrices(skew, width, width)[0].mT
    cross = (turned.mT @ y).square().sum()
    norms = (turned.mT @ turned).square().sum().sqrt() * (y.mT @ y).square().sum().sqrt()
    (cross / norms).backward()
    assert skew.grad.abs().max() < 1e-9


@given(seed=SEEDS, width=WIDTHS, layers=st.integers(2, 4))
def test_the_maps_do_change_cosines_and_the_rank_of_the_sum(seed: int, width: int, layers: int) -> None:
    """Turning layers that differ against each other moves both; the control Q = I does not."""
    stack = [tokens(seed + layer, width) for layer in range(layers)]
    maps = [rotation(seed + 10 + layer, width, width) for layer in range(layers)]
    turned = [z @ q.mT for z, q in zip(stack, maps, strict=True)]
    assert (token_cosine(turned) - token_cosine(stack)).abs().max() > 1e-6
    assert abs(effective_rank(sum(turned)) - effective_rank(sum(stack))) > 1e-9


@given(seed=SEEDS, layers=st.integers(1, 4), rank=st.integers(1, 3))
def test_redundant_layers_stay_redundant(seed: int, layers: int, rank: int) -> None:
    """Where all layers are one z of low rank, no maps raise the rank of Σ w_l Q_l z."""
    width = 6
    z = tokens(seed, rank) @ rotation(seed, rank, width).mT
    fused = sum(z @ rotation(seed + 1 + layer, width, width).mT / layers for layer in range(layers))
    sigma = spectrum(fused)
    assert (sigma[rank:] < 1e-9 * sigma[0]).all()
    assert effective_rank(fused) <= rank + 1e-6


@given(seed=SEEDS, width=WIDTHS, out=WIDTHS)
def test_the_certificate_of_semi_orthogonal_maps_holds_and_of_scaled_ones_does_not(
    seed: int, width: int, out: int
) -> None:
    good, scaled = rotation(seed, width, out), rotation(seed, width, out) * 1.1
    found = orthogonality([good, scaled])
    assert found.worst == 1
    assert found.largest == pytest.approx(1.1)
    assert found.deviation == pytest.approx(0.21)
    assert orthogonality(good[None]).holds(1e-12)
    assert not found.holds()
    assert gram_deviation(good).shape == (min(width, out),) * 2


def test_a_certificate_of_nan_never_holds() -> None:
    maps = torch.stack([torch.eye(3), torch.full((3, 3), torch.nan)])
    found = orthogonality(maps)
    assert (found.worst, found.holds(1e9), math.isnan(found.deviation)) == (1, False, True)
    with pytest.raises(ShapeError, match="at least one matrix"):
        orthogonality([])


def test_effective_rank_of_known_spectra() -> None:
    axes = torch.cat((torch.eye(4), -torch.eye(4)))
    assert effective_rank(axes) == pytest.approx(4)
    assert effective_rank(axes * torch.tensor([1.0, 1, 0, 0])) == pytest.approx(2)
    assert effective_rank(torch.outer(torch.arange(5.0), torch.ones(3))) == pytest.approx(1, abs=1e-6)
    assert effective_rank(torch.ones(5, 3)) == 0
    sigma = torch.tensor([3.0, 1.0])
    p = sigma / 4
    assert effective_rank(torch.cat((torch.diag(sigma), -torch.diag(sigma)))) == pytest.approx(
        float(torch.exp(-(p * p.log()).sum()))
    )


def test_token_cosine_is_the_mean_over_tokens() -> None:
    a = torch.tensor([[1.0, 0], [0, 2]])
    b = torch.tensor([[0.0, 3], [0, 1]])
    torch.testing.assert_close(token_cosine([a, b]), torch.tensor([[1.0, 0.5], [0.5, 1]]).double())
    with pytest.raises(ShapeError, match="all of one shape"):
        token_cosine([a, b[:1]])
    with pytest.raises(ShapeError, match="as many tokens"):
        linear_cka(a, b[:1])


def test_principal_angles_of_known_spans() -> None:
    x = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1], [0, 0]])
    y = torch.tensor([[1.0], [-1], [0], [0], [0]])
    torch.testing.assert_close(principal_angles(x, y), torch.zeros(1).double(), atol=1e-6, rtol=0)
    apart = torch.tensor([[0.0], [0], [1], [-1], [0]])
    torch.testing.assert_close(principal_angles(y, apart), torch.full((1,), math.pi / 2).double())
