"""From pixels to fused tokens: streams (encoder, selected layers, steps) and the fusion graph.

Shapes: C crops, N tokens, D width; x_BND with B = crops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from fusionkit.errors import ShapeError
from fusionkit.model.runtime import Runtime
from fusionkit.ops.finite import require_finite
from fusionkit.ops.tokens import Tokens
from fusionkit.recipe.plan import ENCODER, Node, Plan, StreamPlan


class Stream(nn.Module):
    """One encoder with its steps: pixels -> Tokens.

    Shapes: pixels_BCHW normalised by the encoder's own statistics, coverage_BN of the encoder's tokens -> x_BND on the
    planned grid.
    """

    def __init__(self, plan: StreamPlan, encoder: nn.Module, steps: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.plan = plan
        self.encoder = encoder
        self.steps = nn.ModuleDict(steps)

    def forward(self, pixels_BCHW: Tensor, runtime: Runtime, coverage_BN: Tensor | None = None) -> Tokens:
        self._check(pixels_BCHW, coverage_BN)
        pixels_BCHW = pixels_BCHW.to(self._dtype(pixels_BCHW.dtype))
        if runtime.check_finite:
            require_finite(pixels_BCHW, f"streams.{self.plan.name}: pixels")
        if torch.is_grad_enabled() or runtime.crop_chunk is None:
            return self._run(pixels_BCHW, runtime, coverage_BN)
        pieces = torch.split(pixels_BCHW, runtime.crop_chunk)
        shares = [None] * len(pieces) if coverage_BN is None else torch.split(coverage_BN, runtime.crop_chunk)
        chunks = [self._run(piece, runtime, share) for piece, share in zip(pieces, shares, strict=True)]
        return chunks[0]._replace(
            x_BND=torch.cat([chunk.x_BND for chunk in chunks]),
            valid_BN=_joined([chunk.valid_BN for chunk in chunks]),
            coverage_BN=_joined([chunk.coverage_BN for chunk in chunks]),
        )

    def _dtype(self, default: torch.dtype) -> torch.dtype:
        """What the encoder computes in: processors give fp32 whatever the model was cast to."""
        return next((weight.dtype for weight in self.encoder.parameters() if weight.is_floating_point()), default)

    def _check(self, pixels_BCHW: Tensor, coverage_BN: Tensor | None) -> None:
        expected = (3, *self.plan.info.input_size)
        if tuple(pixels_BCHW.shape[1:]) != expected:
            raise ShapeError(
                f"streams.{self.plan.name}: expected pixels of shape (crops, {', '.join(map(str, expected))}), "
                f"got {tuple(pixels_BCHW.shape)}"
            )
        if not len(pixels_BCHW):  # encoders of libraries fail in ways of their own
            name = self.plan.name
            raise ShapeError(
                f"streams.{name}: expected one crop at least, got pixels of shape {tuple(pixels_BCHW.shape)}; "
                f"for text without a picture leave pixel_values_{name} out"
            )
        shape = (len(pixels_BCHW), self.plan.stack.grid.tokens)
        if coverage_BN is not None and tuple(coverage_BN.shape) != shape:
            raise ShapeError(
                f"streams.{self.plan.name}: expected coverage of shape {shape}, one number per crop and token, "
                f"got {tuple(coverage_BN.shape)}"
            )

    def _run(self, pixels_BCHW: Tensor, runtime: Runtime, coverage_BN: Tensor | None) -> Tokens:
        nodes = self.plan.steps
        if nodes and nodes[0].family == "mixers":
            first, x_BND = nodes[0].name, self._mix(pixels_BCHW, self.steps[nodes[0].name], runtime, coverage_BN)
            nodes = nodes[1:]
        else:
            first, x_BND = ENCODER, self._layers(pixels_BCHW, runtime, coverage_BN)[0]
        # Where such an encoder saw no picture it says nothing; others encode padding as they encode anything.
        valid_BN = coverage_BN > 0 if self.plan.info.reads_coverage and coverage_BN is not None else None
        start = Tokens(x_BND, self.plan.stack.grid, self.plan.stack.frame, valid_BN, coverage_BN=coverage_BN)
        if runtime.check_finite and first != ENCODER:
            require_finite(x_BND, self.plan.steps[0].address, self.steps[first])
        return _run_steps(self.steps, nodes, {first: start}, runtime)

    def _encoder_grad(self) -> bool:
        """Frozen encoders run without a graph, whatever follows them."""
        return torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.encoder.parameters())

    def _options(self, coverage_BN: Tensor | None) -> dict[str, Tensor | None]:
        """What the encoder takes besides pixels and layers."""
        return {"coverage_BN": coverage_BN} if self.plan.info.reads_coverage else {}

    def _layers(self, pixels_BCHW: Tensor, runtime: Runtime, coverage_BN: Tensor | None) -> list[Tensor]:
        encode = cast(Any, self.encoder).forward_layers
        with torch.set_grad_enabled(self._encoder_grad()):
            found = cast(list[Tensor], encode(pixels_BCHW, self.plan.layers, **self._options(coverage_BN)))
        if runtime.check_finite:
            for layer, x_BND in zip(self.plan.layers, found, strict=True):
                self._check_layer(layer, x_BND)
        return found

    def _check_layer(self, layer: int, x_BND: Tensor) -> None:
        require_finite(x_BND, f"{self.plan.encoder.address}: layer {layer}", self.encoder)

    def _mix(self, pixels_BCHW: Tensor, mixer: Any, runtime: Runtime, coverage_BN: Tensor | None) -> Tensor:
        if torch.is_grad_enabled() or not runtime.stream_layers or not hasattr(mixer, "begin"):
            return cast(Tensor, mixer(self._layers(pixels_BCHW, runtime, coverage_BN)))
        layers = self.plan.layers
        # One at a time is what every `begin()` does; only those that take a chunk can do more.
        state = mixer.begin() if runtime.mix_chunk == 1 else mixer.begin(runtime.mix_chunk)

        def consume(layer: int, x_BND: Tensor) -> None:
            nonlocal state
            if runtime.check_finite:
                self._check_layer(layer, x_BND)
            state = mixer.accumulate(state, layers.index(layer), x_BND)

        cast(Any, self.encoder).tap(pixels_BCHW, layers, consume, **self._options(coverage_BN))
        return cast(Tensor, mixer.finish(state))


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Parts of a batch as one; they all have it, or none has."""
    found = [part for part in parts if part is not None]
    return torch.cat(found) if found else None


def run_fusion(plan: Plan, steps: nn.ModuleDict, streams: Mapping[str, Tokens], runtime: Runtime) -> dict[str, Tokens]:
    """Run the fusion graph on the streams' outputs; gives them and every step's outputs by name."""
    named = dict(streams)
    _run_steps(steps, plan.fusion, named, runtime)
    return named


def _run_steps(modules: nn.ModuleDict, nodes: Sequence[Node], named: dict[str, Tokens], runtime: Runtime) -> Tokens:
    """Run steps in order and return the last one's output. `named` starts with what the first steps may read; outputs are added."""
    output = next(iter(named.values()))
    for node in nodes:
        module = modules[node.name]
        inputs = {argument: named[source] for argument, source in node.sources.items()}
        result = module(**inputs) if node.family == "connectors" else module(inputs["input"])
        if isinstance(result, Mapping):
            named.update({f"{node.name}.{key}": tokens for key, tokens in result.items()})
            result = result["main"]
        output = result
        if output.spec != node.plan.main:
            raise ShapeError(f"{node.address}: planned {node.plan.main}, the block returned {output.spec}")
        if runtime.check_finite:
            require_finite(_real(output), node.address, module)
        named[node.name] = output
    return output


def _real(tokens: Tokens) -> Tensor:
    """The tokens that are not padding, which may hold anything: [N, D] of them, or x_BND where all are real."""
    return tokens.x_BND if tokens.valid_BN is None else tokens.x_BND[tokens.valid_BN]
