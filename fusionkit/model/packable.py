"""Whether the samples of one row stay apart in a model.

A decoder of transformers is what its library makes it, and blocks may be anyone's: so they are tried.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fusionkit.errors import UsageError
from fusionkit.geometry import TokenSpec
from fusionkit.model.modeling import IMAGE, FusionVLM
from fusionkit.ops.tokens import Tokens

TOLERANCES = {torch.float64: 1e-5, torch.float32: 1e-4}
ROUGH = 0.02
"""Largest difference, as a share of the largest logit, between a question in a packed row and alone; ROUGH in few bits."""
WORDS = 4
_WAY_ON = "leave `train.packing` out"


def require_packable(model: FusionVLM, sequence_length: int) -> None:
    """Pack two samples for trial, and hold the last question to what it is alone.

    Nothing that stands before it in the row, be it words or pictures, may change its logits by a single bit.

    Raises UsageError when samples do not stay apart, or a window of attention is narrower than the sequence.
    """
    decoder: Any = model.language_model
    text = decoder.config.get_text_config()
    window = getattr(text, "sliding_window", None)
    if window is not None and window < sequence_length:
        raise UsageError(
            f"train.packing: the language model sees {window} tokens back in some layers, fewer than sequence_length "
            f"{sequence_length}, and the mask of packed rows knows no window ({_WAY_ON})"
        )
    training = {module: module.training for module in model.modules()}
    model.train(False)
    try:
        with torch.no_grad():
            one, other, alone = (_last_question(model, before) for before in (1, 2, None))
    finally:
        for module, mode in training.items():
            module.training = mode
    if not torch.equal(one, other):
        raise UsageError(
            f"train.packing: what stands before a sample in its row changes its logits by "
            f"{float((one - other).abs().max()):.1e}: the language model or an injector carries something across ({_WAY_ON})"
        )
    difference = float((one - alone).abs().max() / alone.abs().max().clamp(min=1e-12))
    if difference > TOLERANCES.get(one.dtype, ROUGH):
        raise UsageError(
            f"train.packing: behind another sample a sample's logits differ by {difference:.1e} of the largest from those "
            f"it has alone: the language model does not count positions from the sample's start ({_WAY_ON})"
        )


def _last_question(model: FusionVLM, before: int | None) -> Tensor:
    """The logits of a sample's second question: alone with its picture, or in a row with words number `before`."""
    table: Any = model.get_input_embeddings()
    image, device = model.config.image_token_id, table.weight.device
    generator = torch.Generator().manual_seed(0)
    shared, last = _words(model, generator), _words(model, generator)
    pictures = _pictures(model, before or 1)
    marks = [image] if pictures else []
    ids, samples, turns = marks + shared + last, [0] * (len(marks) + 2 * WORDS), [0] * (len(marks) + 2 * WORDS)
    index = [_tokens(model)] if pictures else []  # the first token of the second crop
    if before is not None:
        other = torch.Generator().manual_seed(before)
        first, question = _words(model, other), _words(model, other)
        ids = marks + first + marks + shared + question + last
        mine = len(marks) + 2 * WORDS + WORDS
        samples = [0] * (len(marks) + WORDS) + [1] * mine
        turns = [0] * (len(samples) - 2 * WORDS) + [1] * WORDS + [2] * WORDS
        index = [0, *index] if pictures else []
    packed = torch.tensor([samples, turns], device=device).T[None]
    output = model(
        input_ids=torch.tensor([ids], device=device),
        packed=packed,
        mm_encoder_outputs=pictures or None,
        visual_index=torch.tensor(index, device=device) if pictures else None,
        use_cache=False,
    )
    logits: Tensor = output.logits[0, -WORDS:]
    return logits


def _words(model: FusionVLM, generator: torch.Generator) -> list[int]:
    """Some ids that are no pictures."""
    image = model.config.image_token_id
    drawn = torch.randint(1, min(image, 256), (WORDS,), generator=generator)
    found: list[int] = drawn.tolist()
    return found


def _tokens(model: FusionVLM) -> int:
    return model.plan.visual.tokens


def _pictures(model: FusionVLM, seed: int) -> Mapping[str, Tokens]:
    """Two crops of random tokens for every injector, the second one always the same; none without streams."""
    if not model.plan.streams:
        return {}
    inside = model.layer_injectors()
    specs: dict[str, TokenSpec] = {IMAGE: model.plan.visual}
    specs |= {node.address: node.site.tokens() for node in model.plan.injectors if node.address in inside}
    table: Any = model.get_input_embeddings()
    like = next(iter(model.injectors.parameters()), table.weight)
    made = {}
    for name, spec in specs.items():
        crops = [
            torch.randn(spec.tokens, spec.width, generator=torch.Generator().manual_seed(number))
            for number in (seed, 0)
        ]
        x_CNE = torch.stack(crops).to(like)
        made[name] = Tokens(x_CNE, spec.grid, spec.frame, copies=spec.copies, interleaved=spec.interleaved)
    return made
