"""Orthogonal maps against independent fp64 formulas, over widths, maps, starts and seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fusionkit.ops.maps import OrthogonalMaps
from fusionkit.ops.orthogonal import (
    cayley,
    exponential,
    haar,
    orthogonal_matrices,
    skew_count,
    skew_matrix,
    strict_lower,
)

WIDTHS = st.integers(1, 9)
SEEDS = st.integers(0, 2**31)
COUNTS = st.integers(1, 3)
SCALES = st.sampled_from([0.0, 1e-4, 0.1, 1.0, 10.0])
quick = settings(max_examples=40, deadline=None)


def random_skew(count: int, n: int, scale: float, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(count, skew_count(n), generator=generator, dtype=torch.float64) * scale).to(dtype)


def slow_skew_matrix(numbers: np.ndarray, n: int) -> np.ndarray:
    """Filled number by number, row by row below the diagonal."""
    a = np.zeros((n, n))
    left = iter(numbers)
    for row in range(n):
        for column in range(row):
            a[row, column] = next(left)
            a[column, row] = -a[row, column]
    return a


def slow_map(a: np.ndarray, name: str) -> np.ndarray:
    """exp through the eigenvalues of the Hermitian i A; Cayley through a solve."""
    if name == "exp":
        values, vectors = np.linalg.eigh(1j * a)
        return np.asarray((vectors * np.exp(-1j * values)) @ vectors.conj().T).real
    eye = np.eye(len(a))
    return np.linalg.solve((eye - a / 2).T, (eye + a / 2).T).T


def slow_matrix(numbers: np.ndarray, d: int, m: int, name: str, base: np.ndarray | None) -> np.ndarray:
    n = max(m, d)
    square = slow_map(slow_skew_matrix(numbers, n), name)
    start = np.eye(m, d) if base is None else base
    return start @ square if m <= d else square @ start


def gram_error(q_LMD: Tensor) -> float:
    """max |QᵀQ - I| or |QQᵀ - I|, whichever the shape promises."""
    narrow = (q_LMD if q_LMD.shape[1] <= q_LMD.shape[2] else q_LMD.mT).detach().double()
    return float((narrow @ narrow.mT - torch.eye(narrow.shape[1])).abs().max())


@quick
@given(COUNTS, WIDTHS, WIDTHS, st.sampled_from(["cayley", "exp"]), st.booleans(), SCALES, SEEDS)
def test_matrices_equal_the_formula(
    count: int, d: int, m: int, name: Any, based: bool, scale: float, seed: int
) -> None:
    torch.manual_seed(seed)
    skew = random_skew(count, max(m, d), scale, seed)
    base = haar(count, d, m) if based else None
    q = orthogonal_matrices(skew, d, m, name, base)
    assert q.shape == (count, m, d)
    for layer in range(count):
        start = None if base is None else base[layer].numpy()
        expected = slow_matrix(skew[layer].numpy(), d, m, name, start)
        np.testing.assert_allclose(q[layer].numpy(), expected, rtol=0, atol=1e-12)


@quick
@given(COUNTS, WIDTHS, WIDTHS, st.sampled_from(["cayley", "exp"]), st.booleans(), SCALES, SEEDS)
def test_fp32_is_orthogonal_and_keeps_lengths(
    count: int, d: int, m: int, name: Any, based: bool, scale: float, seed: int
) -> None:
    torch.manual_seed(seed)
    base = haar(count, d, m).float() if based else None
    q = orthogonal_matrices(random_skew(count, max(m, d), scale, seed, torch.float32), d, m, name, base)
    assert q.dtype == torch.float32
    assert gram_error(q) < 1e-5
    x = torch.randn(count, d, 5)
    before, after = x.norm(dim=1), (q @ x).norm(dim=1)
    if m >= d:
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)
    else:
        assert (after <= before * (1 + 1e-5)).all(), "a narrowing map must not lengthen"


@quick
@given(COUNTS, st.integers(1, 7), SEEDS)
def test_skew_numbers_and_matrices_convert_both_ways(count: int, n: int, seed: int) -> None:
    skew = random_skew(count, n, 1.0, seed)
    a = skew_matrix(skew, n)
    assert torch.equal(a, -a.mT)
    assert torch.equal(strict_lower(a), skew)
    for layer in range(count):
        np.testing.assert_array_equal(a[layer].numpy(), slow_skew_matrix(skew[layer].numpy(), n))


@settings(max_examples=12, deadline=None)
@given(
    st.integers(1, 2), st.integers(1, 4), st.integers(1, 4), st.sampled_from(["cayley", "exp"]), st.booleans(), SEEDS
)
def test_gradients(count: int, d: int, m: int, name: Any, based: bool, seed: int) -> None:
    torch.manual_seed(seed)
    base = haar(count, d, m) if based else None
    skew = random_skew(count, max(m, d), 0.7, seed).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: orthogonal_matrices(s, d, m, name, base), (skew,))


@settings(max_examples=6, deadline=None)
@given(st.integers(2, 4), st.sampled_from([cayley, exponential]), SEEDS)
def test_second_gradients(n: int, op: Any, seed: int) -> None:
    assert torch.autograd.gradgradcheck(lambda s: op(s, n), (random_skew(1, n, 0.7, seed).requires_grad_(),))


@quick
@given(WIDTHS, WIDTHS, SEEDS)
def test_haar_is_semi_orthogonal(d: int, m: int, seed: int) -> None:
    torch.manual_seed(seed)
    q = haar(2, d, m)
    assert q.shape == (2, m, d)
    assert gram_error(q) < 1e-12
    if min(d, m) > 1:
        assert not torch.allclose(q[0], q[1])


def test_haar_is_uniform() -> None:
    torch.manual_seed(0)
    q = haar(4000, 3, 3)
    # Uniform over O(3): entries have mean 0 and variance 1/3, and both determinants come equally often. Plain QR
    # without the sign correction fails the mean of the diagonal.
    assert q.mean(dim=0).abs().max() < 0.04
    assert (q.square().mean(dim=0) - 1 / 3).abs().max() < 0.03
    assert abs(float(torch.linalg.det(q).mean())) < 0.06


@quick
@given(WIDTHS, WIDTHS, st.sampled_from(["cayley", "exp"]), st.sampled_from(["identity", "haar"]), SEEDS)
def test_maps_start_at_their_base(d: int, m: int, name: Any, init: Any, seed: int) -> None:
    torch.manual_seed(seed)
    maps = OrthogonalMaps(2, d, m, name, init)
    q = maps.matrices()
    expected = torch.eye(m, d).expand(2, m, d) if maps.base is None else maps.base
    assert (maps.base is None) == (init == "identity")
    torch.testing.assert_close(q, expected, rtol=0, atol=1e-6)
    assert gram_error(q) < 1e-5
