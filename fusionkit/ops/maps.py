"""A set of orthogonal maps as a module; `fusionkit.ops.step` shares one evaluation over an optimizer step."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fusionkit.errors import UsageError
from fusionkit.ops.orthogonal import MapName, haar, orthogonal_matrices, skew_count
from fusionkit.ops.precision import FullPrecision, full_dtype


class _Held(NamedTuple):
    """Maps made once for an optimizer step: `result` has the graph to skew, `leaf` collects the gradients."""

    result: Tensor
    leaf: Tensor
    version: int


class OrthogonalMaps(FullPrecision):
    """`count` learned matrices Q [count, m, d], orthogonal (m = d) or semi-orthogonal by construction.

    Parameters: `skew` [count, n(n-1)/2], n = max(m, d), always at least fp32. Buffer: `base` [count, m, d], the
    random starting rotations, with `init="haar"` only; at skew = 0 the maps are `base`, or the identity's leading
    part.

    Example:
        >>> OrthogonalMaps(count=2, width_in=8, width_out=4).matrices().shape
        torch.Size([2, 4, 8])
    """

    parameter_roles: ClassVar[Mapping[str, str]] = MappingProxyType({"skew": "skew"})

    base: Tensor | None

    def __init__(
        self,
        count: int,
        width_in: int,
        width_out: int,
        map: MapName = "cayley",
        init: Literal["identity", "haar"] = "identity",
    ) -> None:
        super().__init__()
        self.width_in, self.width_out, self.map = width_in, width_out, map
        side = max(width_in, width_out)
        self.skew = nn.Parameter(torch.empty(count, skew_count(side), dtype=full_dtype()))
        base = torch.empty(count, width_out, width_in, dtype=full_dtype()) if init == "haar" else None
        self.register_buffer("base", base)
        self._held: _Held | None = None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Zero skew, and new random rotations where the maps have a base."""
        self.skew.zero_()
        if self.base is not None and not self.base.is_meta:
            self.base.copy_(haar(len(self.base), self.width_in, self.width_out))

    def matrices(self) -> Tensor:
        """Q [count, m, d], in the dtype of `skew` but at least fp32.

        Evaluated at every call, except inside `step`, where all calls of the step share one evaluation.
        """
        if self._held is None:
            return self._evaluate()
        if not torch.compiler.is_compiling():
            self._refuse_stale(self._held)
        return self._held.leaf

    def _evaluate(self) -> Tensor:
        return orthogonal_matrices(self.skew, self.width_in, self.width_out, self.map, self.base)

    def hold(self) -> None:
        """Evaluate once and hand the result out until `release`; used by `step`."""
        if self._held is not None:
            raise UsageError("fusionkit.step(model) is already open for this model; leave it before the next step")
        with torch.enable_grad():
            result = self._evaluate()
        leaf = result.detach().requires_grad_(result.requires_grad)
        self._held = _Held(result, leaf, self.skew._version)

    def collect(self) -> tuple[Tensor, Tensor] | None:
        """The held maps and the gradient they have gathered; None when there is nothing to pull back."""
        if self._held is None:
            return None
        self._refuse_stale(self._held)
        result, leaf, _ = self._held
        return None if leaf.grad is None else (result, leaf.grad)

    def release(self) -> None:
        self._held = None

    def _refuse_stale(self, held: _Held) -> None:
        if self.skew._version != held.version:
            raise UsageError(
                "skew parameters changed inside fusionkit.step(model); leave it before optimizer.step(), "
                "which must see the gradients that leaving it computes"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": None}  # a copy starts outside any step

    def extra_repr(self) -> str:
        return f"{len(self.skew)} maps {self.width_in} -> {self.width_out}, {self.map}"
