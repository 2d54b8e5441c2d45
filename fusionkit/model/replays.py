"""Work on crops that is captured once for each bucket and replayed, as long as nothing it was captured with has changed.

What captures is handed in: CUDA graphs on a device, a stand-in in tests.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fusionkit.errors import UsageError
from fusionkit.model.crop_buckets import (
    Tree,
    bucket_for,
    crops_of,
    cut_out,
    join,
    pad_into,
    signature,
    split,
    tensors_of,
    with_tensors,
)

Function = Callable[[Tree], Tree]


class Capture(Protocol):
    """Runs `work`, which reads fixed buffers, and gives what it returned with a function that does it all again.

    After a replay, the tensors that were returned hold the new results.
    """

    def __call__(self, work: Callable[[], Tree], device: torch.device) -> tuple[Tree, Callable[[], object]]: ...


@dataclass(frozen=True, slots=True)
class _Captured:
    """Buffers, results and replay of one bucket; `state` and `kept` are what they are good for."""

    inputs: list[Tensor]
    outputs: Tree
    replay: Callable[[], object]
    state: tuple[int, ...]
    kept: Kept


class Replays:
    """Runs functions of crops from captures.

    A capture is made for a bucket, the shapes and types of the inputs, and autocast. It is dropped when a parameter or
    buffer of the modules is another one, has moved, or has been written to (as torch counts writes: not those through
    `.data`), and when a tensor that a module keeps beside them, such as folded maps, has been replaced.
    """

    def __init__(self, buckets: tuple[int, ...], capture: Capture) -> None:
        self.buckets, self.capture = buckets, capture
        self._captured: dict[Hashable, _Captured] = {}

    def run(self, what: str, module: nn.Module, tree: Tree, function: Function) -> Tree:
        """`function(tree)`, which runs `module`; in parts where there are more crops than the largest bucket.

        `what` names the function: the same name must always mean the same one. Results are the caller's own. With a
        module in training mode, and without crops, nothing is captured.
        """
        state = state_of(module)
        if state is None or not crops_of(tree):
            return function(tree)
        parts = [self._run(what, module, state, part, function) for part in split(tree, self.buckets[-1])]
        return parts[0] if len(parts) == 1 else join(parts)

    def drop(self) -> None:
        """Forget all captures; their memory is free again."""
        self._captured.clear()

    def _run(self, what: str, module: nn.Module, state: tuple[int, ...], tree: Tree, function: Function) -> Tree:
        crops = crops_of(tree)
        bucket = bucket_for(crops, self.buckets)
        key = (what, bucket, signature(tree), *_autocast(tree))
        found = self._captured.get(key)
        if found is not None and (found.state != state or not found.kept.unchanged()):
            found = None
            self.drop()  # what has made one useless has made all of them useless
        if found is None:
            found = self._captured[key] = self._make(bucket, module, tree, function)
        # Capturing computes nothing: the first results too come from a replay.
        pad_into(found.inputs, tensors_of(tree))
        found.replay()
        return cut_out(found.outputs, crops)

    # Neither buffers nor results may be inference tensors: nothing outside inference mode could write to them.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _make(self, bucket: int, module: nn.Module, tree: Tree, function: Function) -> _Captured:
        inputs = [tensor.new_zeros(bucket, *tensor.shape[1:]) for tensor in tensors_of(tree)]
        fixed = with_tensors(tree, inputs)
        outputs, replay = self.capture(lambda: function(fixed), inputs[0].device)
        # Only now: the first run folds maps and fills tables, and those are what was captured.
        return _Captured(inputs, outputs, replay, state_of(module) or (), Kept.of(module))


def state_of(module: nn.Module) -> tuple[int, ...] | None:
    """Which parameters and buffers there are, where they lie and how often they were written to; None in training mode.

    Raises: UsageError for weights made in inference mode, whose writes torch does not count.
    """
    found: list[int] = []
    for each in module.modules():
        if each.training:
            return None
        for tensor in (*each._parameters.values(), *each._buffers.values()):
            if tensor is None:
                continue
            if tensor.is_inference():
                raise UsageError(
                    "Runtime.cuda_graphs: the weights were made in inference mode, where torch counts no writes; "
                    "build or load the model outside torch.inference_mode()"
                )
            found += (id(tensor), tensor.data_ptr(), tensor._version)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Kept:
    """What modules keep besides parameters and buffers and that holds tensors (folded maps, tables), and all tensors.

    Holding the tensors keeps their memory from being given to others while a capture reads it, and their identity, by
    which `state_of` knows them.
    """

    places: tuple[tuple[dict[str, Any], str, object], ...]
    tensors: tuple[Tensor, ...]

    @classmethod
    def of(cls, module: nn.Module) -> Kept:
        places: list[tuple[dict[str, Any], str, object]] = []
        tensors: list[Tensor] = []
        for each in module.modules():
            own = (*each._parameters.values(), *each._buffers.values())
            tensors += [tensor for tensor in own if tensor is not None]
            for name, value in vars(each).items():
                inside = () if name in _OWN else tuple(_tensors_inside(value))
                if inside:
                    places.append((vars(each), name, value))
                    tensors += inside
        return cls(tuple(places), tuple(tensors))

    def unchanged(self) -> bool:
        return all(where.get(name) is value for where, name, value in self.places)


_OWN = ("_parameters", "_buffers", "_modules")


def _tensors_inside(value: object, depth: int = 4) -> Iterator[Tensor]:
    """The tensors in nested containers; what lies deeper than anyone nests is not looked at."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, (dict, list, tuple)):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _tensors_inside(entry, depth - 1)


def _autocast(tree: Tree) -> tuple[Hashable, ...]:
    kind = tensors_of(tree)[0].device.type
    return (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
