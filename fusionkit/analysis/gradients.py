"""What a model's answer owes to every token of every layer that its streams read.

The answer is generated greedily, then scored again as it stands: S = sum over its tokens of log p. For layer l of a
stream, with x_n the token at patch n as the fusion reads it and g_n = dS / dx_n (what the layer does to later layers of
its encoder is left out: every layer is judged by its own way into the fusion), and for the fused tokens likewise:

    contribution_n  = max(0, sum_d x_nd g_nd)     Grad-CAM without averaging the gradient over the picture (HiResCAM)
    sensitivity_n   = |g_n|                       where a change of the token would change the answer

Grad-CAM as first published weights channels by the mean of their gradient over all places; a token's channels mean
another thing at every place, and the map is near chance (`benchmarks/gradcam_in_box.py` measures it).

Shapes: C crops, N tokens per crop, D width, T text tokens; one picture, one question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from fusionkit.geometry import Box, Grid
from fusionkit.model.answer import TENSORS
from fusionkit.model.modeling import FusionVLM
from fusionkit.model.processing import FusionProcessor
from fusionkit.sample import Prediction, Sample

CONTRIBUTION, SENSITIVITY = "contribution", "sensitivity"
FUSED = "fused"


@dataclass(frozen=True, slots=True)
class Explained:
    """An answer, and maps [C, N] by place (`semantic 2`, `fused`) and kind; `regions` are the crops in the picture, px."""

    prediction: Prediction
    maps: Mapping[str, Mapping[str, Tensor]]
    grids: Mapping[str, Grid]
    regions: tuple[Box, ...]


def explain(
    model: FusionVLM,
    processor: FusionProcessor,
    sample: Sample,
    *,
    max_new_tokens: int = 64,
    maps_of: Callable[[Tensor, Tensor], Mapping[str, Tensor]] | None = None,
) -> Explained:
    """Answer the sample's first question and trace the answer back.

    `maps_of` makes the maps of tokens [C, N, D] and their gradients; `tokens_to_maps` if not given.
    """
    batch = processor.batch([sample], 1, answers=False)
    inputs = {name: value.to(model.device) for name, value in batch.items() if name.startswith(TENSORS)}
    prompt = inputs["input_ids"].shape[1]
    with torch.no_grad():
        ids_1T = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    size = sample.size
    prediction = processor.decode_answers(ids_1T[:, prompt:], [size] if size is not None else [])[0]
    found: dict[tuple[str, int], Tensor] = {}
    with torch.enable_grad(), _reading_layers(model, found):
        output = model(**{**inputs, "input_ids": ids_1T, "attention_mask": torch.ones_like(ids_1T)}, logits_to_keep=0)
        score = _score(output.logits, ids_1T, prompt, processor)
        places = {f"{stream} {layer}": x_CND for (stream, layer), x_CND in found.items()}
        places[FUSED] = output.visual.x_BND
        gradients = torch.autograd.grad(score, list(places.values()))
    grids = {
        f"{name} {layer}": stream.stack.grid for name, stream in model.plan.streams.items() for layer in stream.layers
    }
    maps = {
        place: (maps_of or tokens_to_maps)(x_CND.detach(), g_CND)
        for (place, x_CND), g_CND in zip(places.items(), gradients, strict=True)
    }
    return Explained(prediction, maps, {**grids, FUSED: output.visual.grid}, batch["regions"][0])


def tokens_to_maps(x_CND: Tensor, g_CND: Tensor) -> dict[str, Tensor]:
    """Both maps [C, N] of tokens and their gradients."""
    return {
        CONTRIBUTION: (x_CND.float() * g_CND.float()).sum(-1).clamp(min=0),
        SENSITIVITY: g_CND.float().norm(dim=-1),
    }


def _score(logits_1TV: Tensor, ids_1T: Tensor, prompt: int, processor: FusionProcessor) -> Tensor:
    """Log-likelihood of the answer; the end mark counts only when it is all there is."""
    answer_T = ids_1T[0, prompt:]
    log_p_TV = logits_1TV[0, prompt - 1 : -1].float().log_softmax(-1)
    log_p_T = log_p_TV.gather(-1, answer_T[:, None])[:, 0]
    tokenizer: Any = processor.tokenizer
    spoken_T = (answer_T != tokenizer.eos_token_id) & (answer_T != tokenizer.pad_token_id)
    return log_p_T[spoken_T].sum() if spoken_T.any() else log_p_T.sum()


@contextmanager
def _reading_layers(model: FusionVLM, found: dict[tuple[str, int], Tensor]) -> Iterator[None]:
    """While open, the layers of every stream are leaves that take a gradient, and are put into `found`."""
    streams = cast(Mapping[str, Any], model.streams)
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in required:
        parameter.requires_grad_(False)
    try:
        for name, stream in streams.items():
            stream.encoder.forward_layers = _leaves(name, stream.encoder.forward_layers, found)
        yield
    finally:
        for stream in streams.values():
            # The instance's own attribute hides the method only while this is open.
            stream.encoder.__dict__.pop("forward_layers", None)
        for parameter, was in required:
            parameter.requires_grad_(was)


def _leaves(name: str, encode: Any, found: dict[tuple[str, int], Tensor]) -> Any:
    def forward_layers(x_BCHW: Tensor, layers: Sequence[int], **options: Any) -> list[Tensor]:
        tokens = [x_BND.detach().requires_grad_() for x_BND in encode(x_BCHW, layers, **options)]
        found.update({(name, layer): x_BND for layer, x_BND in zip(layers, tokens, strict=True)})
        return tokens

    return forward_layers
