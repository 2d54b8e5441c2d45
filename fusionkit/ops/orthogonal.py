"""Orthogonal matrices from free parameters: Cayley transform, matrix exponential, semi-orthogonal shapes.

A skew-symmetric A [n, n] is stored as its strict lower triangle, row by row: n(n-1)/2 numbers (`skew`). Weight decay
or any optimizer step on them leaves Q orthogonal by construction, for m != d too.

Equation: cayley Q = (I + A/2)(I - A/2)⁻¹ = 2M - I with M = (I - A/2)⁻¹;  exp Q = e^A.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor

from fusionkit.errors import NumericsError, ShapeError
from fusionkit.ops.precision import at_least_fp32, full_matmul, full_precision

MapName = Literal["cayley", "exp"]

RESIDUAL_LIMIT = {torch.float32: 1e-3, torch.float64: 1e-9}
"""How far the computed maps may be from exact before they are refused; usual values are a thousand times smaller."""


def skew_count(n: int) -> int:
    """How many numbers a skew-symmetric n x n matrix has."""
    return n * (n - 1) // 2


def skew_matrix(skew_LP: Tensor, n: int) -> Tensor:
    """The matrices A [L, n, n] with the given strict lower triangles."""
    rows, columns = torch.tril_indices(n, n, -1, device=skew_LP.device)
    lower = skew_LP.new_zeros(skew_LP.shape[0], n, n)
    lower[:, rows, columns] = skew_LP
    return lower - lower.mT


def strict_lower(a_LNN: Tensor) -> Tensor:
    """The strict lower triangles [L, n(n-1)/2], row by row: the inverse of `skew_matrix`."""
    rows, columns = torch.tril_indices(a_LNN.shape[-1], a_LNN.shape[-1], -1, device=a_LNN.device)
    return a_LNN[:, rows, columns]


def _skew_gradient(grad_LNN: Tensor) -> Tensor:
    """Gradient of the strict lower triangle from that of A, where each number stands twice, once negated."""
    return strict_lower(grad_LNN - grad_LNN.mT)


# -------------------------------------------------------------------------------------------------- Cayley
@torch.library.custom_op("fusionkit::cayley", mutates_args=())
def cayley(skew_LP: Tensor, n: int) -> Tensor:
    """Cayley transforms Q [L, n, n] of L skew-symmetric matrices.

    Backward costs two products instead of another solve: dA = Mᵀ G Mᵀ.

    Raises:
        NumericsError: the inverses do not invert, for example because `skew` holds NaN.
    """
    with full_precision(skew_LP.device):
        k_LNN = skew_matrix(skew_LP, n).mul_(-0.5)
        k_LNN.diagonal(dim1=-2, dim2=-1).add_(1)
        if skew_LP.device.type == "cpu":
            # Batched LU gives wrong answers on CPU with some oneMKL builds (n >= 256, 2 threads): one at a time.
            m_LNN = torch.empty_like(k_LNN)
            for k_NN, m_NN in zip(k_LNN, m_LNN, strict=True):
                m_NN.copy_(torch.linalg.inv_ex(k_NN).inverse)
        else:
            m_LNN = torch.linalg.inv_ex(k_LNN).inverse.contiguous()
        _check_inverse(k_LNN, m_LNN, skew_LP)
        q_LNN = m_LNN.mul_(2)
        q_LNN.diagonal(dim1=-2, dim2=-1).sub_(1)
    return q_LNN


@cayley.register_fake
def _(skew_LP: Tensor, n: int) -> Tensor:
    return skew_LP.new_empty(skew_LP.shape[0], n, n)


def _keep_cayley(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
    ctx.save_for_backward(output)


def _cayley_backward(ctx: Any, grad_LNN: Tensor) -> tuple[Tensor, None]:
    (q_LNN,) = ctx.saved_tensors
    m_transposed = (q_LNN.mT + torch.eye(q_LNN.shape[-1], dtype=q_LNN.dtype, device=q_LNN.device)) / 2
    return _skew_gradient(full_matmul(full_matmul(m_transposed, grad_LNN), m_transposed)), None


cayley.register_autograd(_cayley_backward, setup_context=_keep_cayley)


def _check_inverse(k_LNN: Tensor, m_LNN: Tensor, skew_LP: Tensor) -> None:
    """K M v = v on a fixed vector v; costs n² per map, and one synchronisation on a GPU."""
    n = k_LNN.shape[-1]
    v_N1 = torch.arange(n, device=k_LNN.device, dtype=k_LNN.dtype).cos().unsqueeze(-1)
    residual_L = (k_LNN @ (m_LNN @ v_N1) - v_N1).abs().amax(dim=(-2, -1))
    _refuse_over_limit(residual_L, skew_LP, n)


def _refuse_over_limit(residual_L: Tensor, skew_LP: Tensor, n: int) -> None:
    limit = RESIDUAL_LIMIT[residual_L.dtype]
    good_L = residual_L <= limit  # false for NaN
    if bool(good_L.all()):
        return
    layer = int(good_L.logical_not().nonzero()[0])
    raise NumericsError(
        f"orthogonal map {layer} of {len(good_L)} ({n}x{n}): residual {float(residual_L[layer]):.2g} is over "
        f"{limit:.0e}, largest |skew| {float(skew_LP[layer].abs().max()):.3g}; the skew parameters have diverged: "
        "lower their learning rate, or go back to an earlier checkpoint"
    )


# --------------------------------------------------------------------------------------------- exponential
@torch.library.custom_op("fusionkit::exponential", mutates_args=())
def exponential(skew_LP: Tensor, n: int) -> Tensor:
    """Matrix exponentials Q [L, n, n] of L skew-symmetric matrices, computed in fp64 and cast back.

    Raises:
        NumericsError: the results are not orthogonal, for example because `skew` holds NaN.
    """
    a_LNN = skew_matrix(skew_LP.double(), n)
    q_LNN = torch.stack([torch.linalg.matrix_exp(a_NN) for a_NN in a_LNN])
    v_N1 = torch.arange(n, device=q_LNN.device, dtype=q_LNN.dtype).cos().unsqueeze(-1)
    residual_L = (q_LNN.mT @ (q_LNN @ v_N1) - v_N1).abs().amax(dim=(-2, -1))
    _refuse_over_limit(residual_L, skew_LP, n)
    return q_LNN.to(skew_LP.dtype)


@exponential.register_fake
def _(skew_LP: Tensor, n: int) -> Tensor:
    return skew_LP.new_empty(skew_LP.shape[0], n, n)


def _keep_exponential(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.n = inputs[1]


def _exponential_backward(ctx: Any, grad_LNN: Tensor) -> tuple[Tensor, None]:
    """dA is the upper right block of exp([[Aᵀ, G], [0, Aᵀ]])."""
    (skew_LP,) = ctx.saved_tensors
    n: int = ctx.n
    gradients = []
    for a_NN, grad_NN in zip(skew_matrix(skew_LP.double(), n), grad_LNN.double(), strict=True):
        top = torch.cat([a_NN.mT, grad_NN], dim=1)
        bottom = torch.cat([torch.zeros_like(a_NN), a_NN.mT], dim=1)
        gradients.append(torch.linalg.matrix_exp(torch.cat([top, bottom]))[:n, n:])
    return _skew_gradient(torch.stack(gradients)).to(skew_LP.dtype), None


exponential.register_autograd(_exponential_backward, setup_context=_keep_exponential)


# --------------------------------------------------------------------------------------------------- any shape
def orthogonal_matrices(
    skew_LP: Tensor, width_in: int, width_out: int, map: MapName = "cayley", base_LMD: Tensor | None = None
) -> Tensor:
    """Matrices Q [L, m, d] with QᵀQ = I if m >= d and QQᵀ = I if m < d.

    The map gives a square R of side n = max(m, d). Then Q = B R if m <= d and Q = R B if m > d, where B is
    `base_LMD`, itself semi-orthogonal; without it B is the leading part of the identity.

    Shapes: skew_LP [L, n(n-1)/2], half precision is computed in fp32; base_LMD [L, m, d].
    """
    n = max(width_in, width_out)
    if skew_LP.ndim != 2 or skew_LP.shape[1] != skew_count(n):
        raise ShapeError(f"skew of {n}x{n} matrices must be [L, {skew_count(n)}], got {list(skew_LP.shape)}")
    skew_LP = at_least_fp32(skew_LP)
    square = cast(Tensor, (cayley if map == "cayley" else exponential)(skew_LP, n))
    if base_LMD is None:
        return square[:, :width_out, :width_in].contiguous()
    base_LMD = base_LMD.to(square.dtype)
    factors = (base_LMD, square) if width_out <= width_in else (square, base_LMD)
    return cast(Tensor, full_matmul(*factors))


def haar(count: int, width_in: int, width_out: int) -> Tensor:
    """`count` random semi-orthogonal matrices [count, m, d] in fp64, uniform (Haar), from torch's CPU generator."""
    tall = torch.randn(count, max(width_in, width_out), min(width_in, width_out), dtype=torch.float64, device="cpu")
    columns = []
    for matrix in tall:
        q, r = torch.linalg.qr(matrix)
        columns.append(q * r.diagonal().sign())  # without the signs QR is not uniform
    q_LNK = torch.stack(columns)
    return q_LNK if width_out >= width_in else q_LNK.mT
