"""The frame of every mixer that sums over layers: whole or streamed, with parameters as they are or folded."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from fusionkit.blocks.mixers.parts import stack_of
from fusionkit.errors import NumericsError, UsageError
from fusionkit.ops.finite import not_finite
from fusionkit.ops.layer_norm_sum import UsesLayerNormSum
from fusionkit.ops.precision import FullPrecision
from fusionkit.plugin import BlockSite, ShapeError

Terms = TypeVar("Terms", bound=tuple[Any, ...])
"""A mixer's own NamedTuple of what the sum needs: weights, gains, matrices; all ready to use."""


class Running(NamedTuple):
    """A sum under way: what it needs, the total so far, and up to `chunk` layers that wait to be added together."""

    terms: Any
    chunk: int
    total: Any = None
    waiting: tuple[Tensor, ...] = ()
    seen: int = 0
    shape: torch.Size | None = None
    dtype: torch.dtype | None = None


class LayerSum(UsesLayerNormSum, FullPrecision, Generic[Terms]):
    """A mixer V = f(Σ_l term_l(z_l)).

    A block gives `terms()` (the parameters made ready, differentiable), `add(total, terms, first, layers)` and
    `close(total, terms)`. Then:

    - `forward(layers)` sums a list; `begin`, `accumulate`, `finish` sum layers as they come, in order, holding at
      most `chunk` of them, with an fp32 total.
    - Out of training and with grad off, `terms()` is evaluated once and kept (`fold`), until `train()`, a load, a
      move or cast, or any write that torch counts in a tensor's version. Writes through `.data` are not counted:
      call `unfold()` after them. A compiled forward does not look at versions at all.
    """

    def __init__(self, site: BlockSite) -> None:
        super().__init__()
        stack = stack_of(site)
        self.address = site.address
        self.layers, self.width_in = stack.depth, stack.width
        self._folded: Terms | None = None
        self._folded_at: tuple[tuple[int, int], ...] = ()

    # --------------------------------------------------------------------------------- what a block gives
    @abstractmethod
    def terms(self) -> Terms:
        """Everything the sum needs, from the parameters as they are now; differentiable."""

    @abstractmethod
    def add(self, total: Any, terms: Terms, first: int, layers: Sequence[Tensor]) -> Any:
        """`total` (None at the start) plus the terms of `layers`, the stack's entries from `first` on."""

    @abstractmethod
    def close(self, total: Any, terms: Terms, dtype: torch.dtype) -> Tensor:
        """The output x_BND in `dtype`, from the finished total."""

    # -------------------------------------------------------------------------------------------- summing
    def forward(self, layers: Sequence[Tensor]) -> Tensor:
        """Shapes: L tensors [B, N, D] -> [B, N, M]."""
        if len(layers) != self.layers:
            raise ShapeError(f"{self._name}: expected {self.layers} layers, got {len(layers)}")
        # A sum of LayerNorms takes all of them at once at no cost: they are here, and it makes no copies of them.
        state = self.begin(self.layers if self.sums_layer_norms else 1)
        for index, x_BND in enumerate(layers):
            state = self.accumulate(state, index, x_BND)
        return self.finish(state)

    def begin(self, chunk: int = 1) -> Running:
        """Start a sum; `chunk` layers are added at a time (more memory, fewer passes over the total)."""
        if chunk < 1:
            raise UsageError(f"{self._name}: chunk must be at least 1, got {chunk}")
        return Running(self._ready_terms(), chunk)

    def accumulate(self, state: Running, index: int, x_BND: Tensor) -> Running:
        """Take entry `index` of the stack; entries must come in order, each once."""
        if index != state.seen or index >= self.layers:
            expected = f"layer {state.seen}" if state.seen < self.layers else "no more layers"
            raise UsageError(f"{self._name}: expected {expected} of {self.layers}, got layer {index}")
        if x_BND.shape[-1] != self.width_in:
            raise ShapeError(f"{self._name}: expected width {self.width_in} of layer {index}, got {x_BND.shape[-1]}")
        if state.shape is not None and x_BND.shape != state.shape:
            raise ShapeError(f"{self._name}: expected {list(state.shape)} of layer {index}, got {list(x_BND.shape)}")
        waiting, seen = (*state.waiting, x_BND), state.seen + 1
        state = state._replace(waiting=waiting, seen=seen, shape=x_BND.shape, dtype=x_BND.dtype)
        if len(waiting) < state.chunk and seen < self.layers:
            return state
        total = self.add(state.total, state.terms, seen - len(waiting), waiting)
        return state._replace(total=total, waiting=())

    def finish(self, state: Running) -> Tensor:
        """The mixed x_BND, in the dtype of the layers."""
        if state.seen != self.layers or state.dtype is None:
            raise UsageError(f"{self._name}: expected {self.layers} layers before finish, got {state.seen}")
        return self.close(state.total, state.terms, state.dtype)

    # -------------------------------------------------------------------------------------------- folding
    def fold(self) -> None:
        """Evaluate the maps and weights now and keep them for inference.

        Raises NumericsError when one of them is NaN or infinite: once here, so that no forward need look.
        """
        if self.training:
            raise UsageError(f"{self._name}: fold() is for inference, call eval() first")
        if faulty := not_finite(self):
            raise NumericsError(f"{self._name}: weights are not finite ({', '.join(faulty)}): load others")
        # Kept tensors must not be inference tensors: nothing that runs with grad could touch them later.
        with torch.inference_mode(False), torch.no_grad():
            self._folded = self.terms()
        self._folded_at = self._versions()

    def unfold(self) -> None:
        """Forget what `fold` kept; the next inference evaluates anew."""
        self._folded, self._folded_at = None, ()

    def _ready_terms(self) -> Terms:
        if self.training or torch.is_grad_enabled():
            return self.terms()
        if torch.compiler.is_compiling():
            return self.terms() if self._folded is None else self._folded
        if any(tensor.is_inference() for tensor in self._sources()):
            return self.terms()  # inference tensors count no versions, so staleness would go unseen
        if self._folded is None or self._folded_at != self._versions():
            self.fold()
        return self.terms() if self._folded is None else self._folded

    def _sources(self) -> list[Tensor]:
        return [*self.parameters(), *self.buffers()]

    def _versions(self) -> tuple[tuple[int, int], ...]:
        return tuple((id(tensor), tensor._version) for tensor in self._sources())

    def train(self, mode: bool = True) -> LayerSum[Terms]:
        self.unfold()
        super().train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LayerSum[Terms]:
        self.unfold()
        super()._apply(fn, recurse)
        return self

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], *args: Any) -> None:
        self.unfold()
        super()._load_from_state_dict(state_dict, *args)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_folded": None, "_folded_at": ()}  # a copy folds for itself

    @property
    def _name(self) -> str:
        return self.address or type(self).__name__
