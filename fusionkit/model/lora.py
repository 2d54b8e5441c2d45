"""Low-rank updates (LoRA) of a fused model's decoder, by PEFT.

Two ways. `lora_config` is what `peft.get_peft_model(model, ...)` takes: the result is a PeftModel for transformers'
Trainer, saved and loaded as an adapter, its new embedding rows with it. `add_lora` changes a model in place and keeps
every address: `language_model.model.layers.0.self_attn.q_proj.lora_A.default.weight` lies in `language_model`.

Equation: W' = W + alpha / rank · B A, with W frozen, A [rank, inputs] random and B [outputs, rank] zero at the start.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from fusionkit.blocks.language_models.quantized import plain_weight
from fusionkit.errors import BuildError, UsageError
from fusionkit.model.modeling import FusionVLM

DECODER = "language_model"
UPDATE = ".lora_"
"""What the names of the parameters that learn have in them."""


def lora_config(
    model: FusionVLM,
    *,
    rank: int = 16,
    alpha: float = 32.0,
    dropout: float = 0.0,
    targets: Sequence[str] | None = None,
    new_rows: Sequence[int] = (),
) -> Any:
    """A `peft.LoraConfig` for the linear layers of the model's decoder, called by their last names in `targets`.

    All of its blocks' linear layers if none are named. The embedding rows `new_rows` learn too and are saved with the
    adapter: those of the tokens that fusionkit added are `processor.new_token_ids`.

    Raises: BuildError when PEFT is not installed; UsageError when the decoder has no such layer, or an embedding whose
    rows PEFT cannot train.

    Example: `peft.get_peft_model(model, lora_config(model, rank=8, new_rows=processor.new_token_ids))`
    """
    names = _layers(model, targets)
    config = _peft().LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=f"(?:{'|'.join(re.escape(name) for name in names)})",
        bias="none",
    )
    if new_rows:
        if getattr(model.get_input_embeddings(), "context", 0):
            raise UsageError(
                "lora_config: PEFT cannot train rows of an embedding that looks back (token_shift); "
                "leave new_rows out, or train the decoder as a whole: it is small"
            )
        tables = [model.get_input_embeddings()]
        output = model.get_output_embeddings()
        if output is not None and output.weight is not tables[0].weight:
            tables.append(output)
        addresses = [name for name, module in model.named_modules() if any(module is table for table in tables)]
        config.trainable_token_indices = {address: list(new_rows) for address in addresses}
    return config


def add_lora(
    model: FusionVLM, *, rank: int, alpha: float, dropout: float = 0.0, targets: Sequence[str] | None = None
) -> None:
    """Give the decoder's linear layers low-rank updates, in place, and freeze every other parameter of the decoder.

    Raises: as `lora_config`.
    """
    config = lora_config(model, rank=rank, alpha=alpha, dropout=dropout, targets=targets)
    learns = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    _peft().inject_adapter_in_model(config, model)  # freezes all there was, the encoders too
    for parameter, before in learns:
        parameter.requires_grad_(before)
    freeze_base(model)


def freeze_base(model: FusionVLM) -> None:
    """Freeze what the updates leave alone: all of the decoder but the updates themselves."""
    for name, parameter in model.named_parameters():
        if name.startswith(f"{DECODER}.") and UPDATE not in name:
            parameter.requires_grad_(False)


def merge_lora(model: FusionVLM) -> None:
    """Add every update to its weight and put plain layers back, in place.

    A quantised layer becomes a plain one: rounding the sum to few bits again would lose most of a small update.
    """
    from peft.tuners.lora import LoraLayer

    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, _merged(layer))


@torch.no_grad()
def _merged(layer: Any) -> nn.Linear:
    base = layer.get_base_layer()
    plain = plain_weight(base)
    if plain is not None:
        linear = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        linear.weight = nn.Parameter(plain)
        linear.bias = base.bias
        base = linear
    for name in layer.active_adapters:
        update: torch.Tensor = layer.get_delta_weight(name)
        base.weight += update.to(base.weight)
    merged: nn.Linear = base
    return merged


def _layers(model: FusionVLM, targets: Sequence[str] | None) -> list[str]:
    """Addresses of the linear layers in the decoder's blocks, or of those that `targets` calls by their last names."""
    if model.language_model is None:
        raise UsageError("this recipe has no language_model, so there is nothing for LoRA to update")
    head = model.get_output_embeddings()
    found = [
        f"{DECODER}.{name}"
        for name, layer in model.language_model.named_modules()
        if isinstance(layer, nn.Linear) and layer is not head
    ]
    if targets is None:
        return found
    known = sorted({name.rpartition(".")[2] for name in found})
    if unknown := [name for name in targets if name not in known]:
        raise UsageError(
            f"LoRA targets {', '.join(unknown)}: the decoder has no linear layer of that name; it has {', '.join(known)}"
        )
    return [name for name in found if name.rpartition(".")[2] in targets]


def _peft() -> Any:
    if find_spec("peft") is None:
        raise BuildError("LoRA needs the package peft, which is not installed (run: pip install 'fusionkit[lora]')")
    import peft

    return peft
