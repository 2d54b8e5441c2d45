"""The vision side executed as a `Runtime` says: one encoder after the other, side by side, or from captured graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from fusionkit.model.crop_buckets import Tree, default_buckets
from fusionkit.model.cuda_graph import CudaCapture
from fusionkit.model.lanes import CudaLanes, Work, run_side_by_side
from fusionkit.model.replays import Function, Replays
from fusionkit.model.runtime import Runtime
from fusionkit.ops.tokens import Tokens
from fusionkit.recipe.plan import Plan

Fuse = Callable[[Mapping[str, Tokens]], Mapping[str, Tokens]]


def most_crops(plan: Plan) -> int:
    """How many crops the picture with most tokens has; 1 where the recipe has no cropper."""
    return plan.largest_layout.crops if plan.layouts is not None else 1


class VisionRunner:
    """Runs streams and the fusion; `most_crops` is what one picture has at most.

    Raises: UsageError when the runtime asks for a CUDA device and there is none.
    """

    def __init__(self, runtime: Runtime, most_crops: int = 1) -> None:
        self.runtime, self.most_crops = runtime, most_crops
        self._replays: Replays | None = None
        if runtime.cuda_graphs:
            self._replays = Replays(runtime.crop_buckets or default_buckets(most_crops), CudaCapture())
        self._lanes = CudaLanes() if runtime.parallel_encoders else None

    def encode(
        self, streams: nn.ModuleDict, pixels: Mapping[str, Tensor], coverage: Mapping[str, Tensor]
    ) -> dict[str, Tokens]:
        """Run the streams that have pixels: name -> pixels_CCHW and coverage_CN give name -> Tokens."""
        if torch.is_grad_enabled() or self._replays is None:
            return self._encode(streams, pixels, coverage)
        tree = {f"{_PIXELS}{name}": pixels[name] for name in pixels}
        tree |= {f"{_COVERAGE}{name}": coverage[name] for name in pixels if name in coverage}

        def encode(given: Tree) -> Tree:
            found = cast(Mapping[str, Tensor], given)
            return self._encode(streams, _named(found, _PIXELS), _named(found, _COVERAGE))

        return cast(dict[str, Tokens], self._replays.run("encode", streams, tree, encode))

    def fuse(self, fusion: nn.ModuleDict, fuse: Fuse, streams: Mapping[str, Tokens]) -> dict[str, Tokens]:
        """`fuse(streams)`, which runs the steps of `fusion`."""
        if torch.is_grad_enabled() or self._replays is None:
            return dict(fuse(streams))
        return cast(dict[str, Tokens], self._replays.run("fuse", fusion, streams, cast(Function, fuse)))

    def drop(self) -> None:
        """Free what was captured."""
        if self._replays is not None:
            self._replays.drop()

    def _encode(
        self, streams: nn.ModuleDict, pixels: Mapping[str, Tensor], coverage: Mapping[str, Tensor]
    ) -> dict[str, Tokens]:
        def work(name: str) -> Work:
            inputs = [pixels[name], *([coverage[name]] if name in coverage else [])]
            return Work(inputs, lambda: streams[name](pixels[name], self.runtime, coverage.get(name)))

        works = {name: work(name) for name in pixels}
        if self._lanes is None or torch.is_grad_enabled() or len(works) < 2:
            return {name: each.run() for name, each in works.items()}
        return run_side_by_side(works, self._lanes)

    def __reduce__(self) -> tuple[Any, ...]:
        return (VisionRunner, (self.runtime, self.most_crops))  # a copy of the model captures for itself


_PIXELS, _COVERAGE = "pixels.", "coverage."


def _named(tree: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tree.items() if name.startswith(prefix)}
