"""Orthogonal weights of the released CoME-VL checkpoints, to and from ours.

There a layer holds `parametrizations.weight.original` X [m, d] and `parametrizations.weight.0.base` B, as
`torch.nn.utils.parametrizations.orthogonal` writes them; here it holds `skew` [1, n(n-1)/2] and `base` [1, m, d]
(`map: exp`, `init: haar`).

Equation: square W = B expm(tril(X) - tril(X)ᵀ), the same form as ours, so training goes on where it was. Other shapes
are Householder products there: the finished W becomes our base at skew = 0, which is the same layer with other
coordinates around it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fusionkit.errors import ShapeError
from fusionkit.ops.orthogonal import orthogonal_matrices, skew_count, skew_matrix, strict_lower


def from_released(original_MD: Tensor, base: Tensor) -> dict[str, Tensor]:
    """`skew` and `base` of `OrthogonalMaps` from the released layer's two tensors.

    Raises ShapeError unless B is square with the longer side of X (both as torch stores them).
    """
    rows, columns = original_MD.shape
    n = max(rows, columns)
    if base.shape != (n, n):
        raise ShapeError(f"base of a {rows}x{columns} layer must be {n}x{n}, got {'x'.join(map(str, base.shape))}")
    if rows == columns:
        return {"skew": strict_lower(original_MD[None]), "base": base[None].clone()}
    tall_NK = original_MD if rows > columns else original_MD.mT
    below_NK = tall_NK.tril(-1)
    tau_K = 2 / (1 + below_NK.square().sum(0))
    # The released layer truncates its diagonal towards zero: whole signs, or a column that has vanished.
    q_NK = torch.linalg.householder_product(below_NK, tau_K) * tall_NK.diagonal().int().to(tall_NK.dtype)
    weight_NK = base @ q_NK
    weight = weight_NK if rows > columns else weight_NK.mT
    return {"skew": original_MD.new_zeros(1, skew_count(n)), "base": weight[None].contiguous()}


def to_released(skew_1P: Tensor, base_1MD: Tensor | None, width_in: int, width_out: int) -> dict[str, Tensor]:
    """`original` and `base` of the released layer from ours, for `map: exp`; W is the same.

    Square layers keep their skew. For others the whole of W goes to the base, completed to a square, and `original`
    is the Householder form of the identity.
    """
    n = max(width_in, width_out)
    if width_in == width_out:
        base = torch.eye(n, dtype=skew_1P.dtype, device=skew_1P.device) if base_1MD is None else base_1MD[0].clone()
        # As torch initialises it, with -1 on the diagonal, which cancels.
        return {"original": skew_matrix(skew_1P, n)[0].tril(-1) - torch.eye(n).to(skew_1P), "base": base}
    weight_MD = orthogonal_matrices(skew_1P, width_in, width_out, "exp", base_1MD)[0]
    tall_NK = weight_MD if width_out > width_in else weight_MD.mT
    count = tall_NK.shape[1]
    # The full QR of W spans W's columns first, up to sign; the rest completes them to a basis.
    full_NN = torch.linalg.qr(tall_NK, mode="complete").Q
    base = torch.cat((tall_NK, full_NN[:, count:]), dim=1)
    original_NK = -torch.eye(n, count).to(tall_NK)
    return {"original": original_NK if width_out > width_in else original_NK.mT.contiguous(), "base": base}
