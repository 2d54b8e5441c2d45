"""One variant of a case, ready to be called again and again in one mode, and its distance from float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fusionkit.bench.subject import Arguments, call, converted, tensors_of
from fusionkit.errors import NumericsError
from fusionkit.ops.step import step

MICRO_BATCHES = 4
"""Forwards and backwards in mode `step`, on the same data; the optimizer's own update is left out."""

ALLOWED_ERROR = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""Norm-relative error against float64 beyond which a variant computes something else and is not timed."""

ALLOWED_ERROR_DEEP = {torch.float32: 1e-3, torch.bfloat16: 1e-1}
"""The same for encoders, decoders and whole vision sides, whose many layers each round."""

ALLOWED_GRADIENT = {torch.float32: 1e-4, torch.bfloat16: 1e-1}
"""The same for gradients: those of biases and gates are sums over all tokens that mostly cancel, each term rounded."""

VANISHING = {torch.float32: 1e-3, torch.bfloat16: 1e-2}
"""A gradient smaller than this share of the largest is compared with that share: that of a key's bias is exactly 0."""


@dataclass
class Work:
    """A module with its data. `call()` does what is timed; `prepare()` what comes before and is not.

    Modes: `fwd` in eval mode without grad; `fwdbwd` in training mode with gradients of parameters and inputs; `step`
    is `MICRO_BATCHES` of these, inside `fusionkit.step` if `in_step`. `around` makes the context of a backend.
    """

    module: nn.Module
    arguments: Arguments
    mode: str
    in_step: bool = False
    unfold: bool = False
    autocast: torch.dtype | None = None
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    cotangents: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        training = self.mode != "fwd"
        # Only where it changes something: `train` makes mixers forget what they folded, which other variants still use.
        if any(part.training != training for part in self.module.modules()):
            self.module.train(training)
        dtype = tensors_of(self.arguments)[0].dtype
        self.arguments = converted(self.arguments, dtype, requires_grad=training)
        self.device = tensors_of(self.arguments)[0].device

    def prepare(self) -> None:
        """Drop gradients, so that none is added to; with `unfold`, also what the block has folded."""
        if self.unfold:
            self.module.unfold()  # type: ignore[operator]
        for tensor in (*self.module.parameters(), *tensors_of(self.arguments)):
            tensor.grad = None

    def call(self) -> dict[str, Tensor]:
        """The work itself; returns the outputs (of the last micro-batch)."""
        with self.around():
            return self._call()

    def _call(self) -> dict[str, Tensor]:
        if self.mode == "fwd":
            with torch.no_grad():
                return self._forward()
        if self.mode == "fwdbwd":
            return self._forward_backward()
        with step(self.module) if self.in_step else nullcontext():
            for _ in range(MICRO_BATCHES):
                outputs = self._forward_backward()
        return outputs

    def _forward(self) -> dict[str, Tensor]:
        if self.autocast is None:
            return call(self.module, self.arguments)
        with torch.autocast(self.device.type, dtype=self.autocast):
            return call(self.module, self.arguments)

    def _forward_backward(self) -> dict[str, Tensor]:
        outputs = self._forward()
        roots = [output for output in outputs.values() if output.requires_grad]
        if not self.cotangents:
            generator = torch.Generator().manual_seed(2)
            self.cotangents = [torch.randn(root.shape, generator=generator).to(root) for root in roots]
        torch.autograd.backward(roots, [grad.to(root.dtype) for root, grad in zip(roots, self.cotangents, strict=True)])
        return outputs

    def results(self) -> dict[str, Tensor]:
        """One call: its outputs, and in training modes the gradients of inputs (`input 0`, ...) and parameters."""
        self.prepare()
        found = {f"output {name}": tensor.detach() for name, tensor in self.call().items()}
        if self.mode != "fwd":
            named = {f"input {number}": tensor for number, tensor in enumerate(tensors_of(self.arguments))}
            named |= dict(self.module.named_parameters())
            found |= {f"grad {name}": tensor.grad for name, tensor in named.items() if tensor.grad is not None}
        return found


@dataclass(frozen=True, slots=True)
class Error:
    """The worst tensor of a call against float64: largest difference, and norm of the difference over the norm."""

    max_abs: float
    rel: float
    where: str


def exact(module: nn.Module, arguments: Arguments, mode: str, *, in_place: bool = False) -> dict[str, Tensor]:
    """The results in float64, with nothing folded and no map shared, on the same numbers.

    Of a copy of the block; `in_place` turns the block itself to float64 and back, which changes no number in it: a
    large one has no room for a copy.
    """
    with _as_float64(module) if in_place else nullcontext(copy.deepcopy(module).double()) as module64:
        if mode == "fwd":
            module64.requires_grad_(False)  # so that the grad mode below records no graph
        work = Work(module64, converted(arguments, torch.float64), mode)
        # In `fwd`, with grad on: that is what keeps a block from using what it has folded.
        found = _unfolded(work) if mode == "fwd" else work.results()
        return {name: tensor.detach() for name, tensor in found.items()}


@contextmanager
def _as_float64(module: nn.Module) -> Iterator[nn.Module]:
    tensors = [*module.parameters(), *(buffer for buffer in module.buffers() if buffer.is_floating_point())]
    before = [(tensor.dtype, tensor.requires_grad) for tensor in tensors]
    module.double()
    try:
        yield module
    finally:
        module.float()
        now = [*module.parameters(), *(buffer for buffer in module.buffers() if buffer.is_floating_point())]
        for tensor, (dtype, requires_grad) in zip(now, before, strict=True):
            tensor.grad = None
            tensor.data = tensor.data.to(dtype)
            tensor.requires_grad_(requires_grad)


def _unfolded(work: Work) -> dict[str, Tensor]:
    with torch.enable_grad():
        return {f"output {name}": tensor for name, tensor in call(work.module, work.arguments).items()}


def compare(found: dict[str, Tensor], expected: dict[str, Tensor], dtype: torch.dtype, *, deep: bool = False) -> Error:
    """The worst error over the tensors both have.

    Raises: NumericsError when it is over `ALLOWED_ERROR` or `ALLOWED_GRADIENT` (of deep stacks `ALLOWED_ERROR_DEEP`),
    when a tensor has another shape, or outputs are missing.
    """
    if missing := [name for name in expected if name.startswith("output") and name not in found]:
        raise NumericsError(f"{', '.join(missing)} missing; got {', '.join(found)}")
    worst = Error(0.0, 0.0, "")
    largest = max((float(tensor.norm()) for name, tensor in expected.items() if name.startswith("grad")), default=0.0)
    for name in expected.keys() & found.keys():
        a, b, is_gradient = found[name].double(), expected[name], name.startswith("grad")
        allowed = (ALLOWED_ERROR_DEEP if deep else ALLOWED_GRADIENT if is_gradient else ALLOWED_ERROR)[dtype]
        if a.shape != b.shape:
            raise NumericsError(f"{name} has shape {list(a.shape)}, expected {list(b.shape)}")
        gap = a - b
        scale = max(float(b.norm()), VANISHING[dtype] * largest if is_gradient else 0.0, 1e-30)
        error = Error(float(gap.abs().max()), float(gap.norm()) / scale, name)
        if not error.rel <= allowed:  # also for NaN
            raise NumericsError(f"{name} differs from float64 by {error.rel:.1e} of its norm, allowed {allowed:.0e}")
        if error.rel > worst.rel or not worst.where:
            worst = error
    return worst
