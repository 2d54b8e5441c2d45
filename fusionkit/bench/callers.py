"""Every family called in one way: a list of tensors, or tokens by name, in; tensors by name out.

Shapes: B rows of text, T tokens, E language-model width, C crops, N tokens of a crop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn

from fusionkit.geometry import TokenSpec
from fusionkit.model.runtime import Runtime
from fusionkit.model.tower import Stream, run_fusion
from fusionkit.model.vision import VisionRunner, most_crops
from fusionkit.ops.placement import Placement
from fusionkit.ops.tokens import Tokens
from fusionkit.recipe.plan import Plan


class EncoderCall(nn.Module):
    """Pixels -> the layers the site reads."""

    def __init__(self, encoder: nn.Module, layers: tuple[int, ...]) -> None:
        super().__init__()
        self.encoder, self.layers = encoder, layers

    def forward(self, inputs: list[Tensor]) -> dict[str, Tensor]:
        found = self.encoder.forward_layers(inputs[0], self.layers)  # type: ignore[operator]
        return {f"layer {layer}": x_BND for layer, x_BND in zip(self.layers, found, strict=True)}


class DecoderCall(nn.Module):
    """Embeddings of a whole prompt -> the logits of the next token: a prefill without a cache."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, inputs: list[Tensor]) -> dict[str, Tensor]:
        return {"logits": self.decoder(inputs_embeds=inputs[0], use_cache=False, logits_to_keep=1).logits}


class InjectorCall(nn.Module):
    """[text embeddings, visual vectors] -> embeddings; the vectors stand in a row at the start of the text."""

    def __init__(self, injector: nn.Module, mask_BT: Tensor) -> None:
        super().__init__()
        self.injector = injector
        self.register_buffer("mask_BT", mask_BT)

    def forward(self, inputs: list[Tensor]) -> dict[str, Tensor]:
        return {"embeds": self.injector(*inputs, self.mask_BT)}


class LayerInjectorCall(nn.Module):
    """[hidden states, visual tokens] -> hidden states after all layers at which the injector acts."""

    def __init__(self, injector: nn.Module, tokens: TokenSpec, placement: Placement) -> None:
        super().__init__()
        self.injector, self.tokens, self.placement = injector, tokens, placement

    def forward(self, inputs: list[Tensor]) -> dict[str, Tensor]:
        hidden_BTE, x_CND = inputs
        spec, injector = self.tokens, self.injector
        read = Tokens(x_CND, spec.grid, spec.frame, None, spec.copies, spec.interleaved)
        state = injector.prepare(read, self.placement)  # type: ignore[operator]
        for layer in injector.layers:  # type: ignore[union-attr]
            hidden_BTE = injector(hidden_BTE, state, layer, 0)
        return {"hidden": hidden_BTE}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LayerInjectorCall:
        moved: dict[str, Any] = {name: fn(x) for name, x in self.placement._asdict().items() if isinstance(x, Tensor)}
        self.placement = self.placement._replace(**moved)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


class ObjectiveCall(nn.Module):
    """What an objective reads (streams, logits, matrices) -> its losses."""

    def __init__(self, objective: nn.Module, streams: Mapping[str, TokenSpec], batch: Mapping[str, Any]) -> None:
        super().__init__()
        self.objective, self.streams, self.batch = objective, dict(streams), dict(batch)

    def forward(self, inputs: list[Tensor]) -> dict[str, Tensor]:
        rest = list(inputs)
        needs = frozenset(self.objective.needs)  # type: ignore[arg-type]
        streams, logits, modules = {}, None, {}
        if "modules" in needs:
            modules = {address: _Held(rest.pop(0)) for address in self.objective.reads}  # type: ignore[union-attr]
        elif "language_model" in needs:
            logits = rest.pop(0)
        else:
            for name, spec in self.streams.items():
                streams[name] = Tokens(rest.pop(0), spec.grid, spec.frame, None)
        outputs = SimpleNamespace(streams=streams, logits=logits, visual=None)
        found: dict[str, Tensor] = self.objective(outputs, self.batch, *((modules,) if modules else ()))
        return found

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ObjectiveCall:
        self.batch = {name: fn(value) if isinstance(value, Tensor) else value for name, value in self.batch.items()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


class _Held(nn.Module):
    """Stands for a mixer: gives the matrices it was given."""

    def __init__(self, matrices_LMD: Tensor) -> None:
        super().__init__()
        self.held = matrices_LMD

    def matrices(self) -> Tensor:
        return self.held


class VisionCall(nn.Module):
    """Pixels of the streams, in order -> the tokens of the one stream, or of the fusion."""

    def __init__(
        self, plan: Plan, streams: Mapping[str, Stream], fusion: nn.ModuleDict | None, runtime: Runtime
    ) -> None:
        super().__init__()
        self.plan, self.vision = plan, VisionRunner(runtime, most_crops(plan))
        self.streams, self.fusion = nn.ModuleDict(dict(streams)), fusion

    def forward(self, inputs: list[Tensor]) -> dict[str, Tensor]:
        named = self.vision.encode(self.streams, dict(zip(self.streams, inputs, strict=True)), {})
        if self.fusion is None:
            return {"main": next(iter(named.values())).x_BND}
        return {"main": self.vision.fuse(self.fusion, self._fuse, named)["main"].x_BND}

    def _fuse(self, streams: Mapping[str, Tokens]) -> dict[str, Tokens]:
        fused = run_fusion(self.plan, cast(nn.ModuleDict, self.fusion), streams, self.vision.runtime)
        return {"main": fused[self.plan.visual_source]}

    def under(self, runtime: Runtime) -> VisionCall:
        """The same modules, executed in another way."""
        streams = {name: stream for name, stream in self.streams.items() if isinstance(stream, Stream)}
        other = VisionCall(self.plan, streams, self.fusion, runtime)
        other.training = other.streams.training = self.training
        return other


def text_mask(rows: int, length: int, visual: int) -> Tensor:
    """True at the image tokens, [B, T]: the first `visual` of the first row's, then of the next."""
    mask_BT = torch.zeros(rows, length, dtype=torch.bool)
    mask_BT.view(-1)[:visual] = True
    return mask_BT
