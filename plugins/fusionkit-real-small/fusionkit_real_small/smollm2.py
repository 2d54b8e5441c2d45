"""`real.smollm2_135m`: the decoder, read from the GGUF file by transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from fusionkit.errors import BuildError
from fusionkit.plugin import BlockSite
from fusionkit_real_small.packages import SMOLLM2
from fusionkit_real_small.specs import LLAMA, Smollm2Config, describe_smollm2

_AUTO: Any = AutoModelForCausalLM


def build_smollm2(config: Smollm2Config, site: BlockSite) -> PreTrainedModel:
    """The decoder with `site.rows` embedding rows (as many as it has, if 0), on the current default device.

    Rows beyond its own are there but not yet meant: the caller initialises them. On the meta device no weights are read.

    Raises BuildError when the package with the weights is missing, or the decoder is not the planned one.
    """
    rows = site.rows or LLAMA["vocab_size"]
    on_meta = torch.get_default_device().type == "meta"
    if on_meta or config.weights == "random":
        model: Any = LlamaForCausalLM(LlamaConfig(**{**LLAMA, "vocab_size": rows}))
    else:
        model = _from_gguf(SMOLLM2.require())
        if rows != LLAMA["vocab_size"]:
            # What the new rows hold is the caller's business: no mean over the vocabulary here.
            model.resize_token_embeddings(rows, mean_resizing=False)
    if on_meta:
        _compute_rotary_at_first_call(model)
    planned, found = describe_smollm2(config).count_params(rows), _count(model)
    if planned != found:
        raise BuildError(f"real.smollm2_135m: planned {planned} parameters with {rows} rows, the model has {found}")
    return cast(PreTrainedModel, model)


def _from_gguf(file: Path) -> PreTrainedModel:
    """The weights, expanded to float32; transformers needs the packages gguf and accelerate for it."""
    try:
        model = _AUTO.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)
    except ImportError as error:
        raise BuildError(f"reading {file.name} needs the package gguf; run: pip install gguf") from error
    # It was quantised on disk and is not any more; saved with that mark it would be read back as if it were.
    del model.config.quantization_config
    _check(model.config)
    return cast(PreTrainedModel, model)


def _check(config: Any) -> None:
    """Raise BuildError when the file describes another decoder than the planned one."""
    for name, planned in LLAMA.items():
        found = getattr(config, name)
        if name == "rope_parameters":
            planned, found = planned["rope_theta"], found["rope_theta"]
        if isinstance(planned, float) and abs(planned - found) <= 1e-6 * planned:
            continue
        if found != planned:
            raise BuildError(f"{SMOLLM2.path}: {name} is {found}, expected {planned}; run: {SMOLLM2.install}")


def _count(model: PreTrainedModel) -> int:
    """Parameters, tied ones once. While transformers loads a checkpoint it puts off tying, so the head is left out here."""
    head = {id(parameter) for parameter in cast(nn.Module, model.get_output_embeddings()).parameters()}
    embedding = cast(nn.Embedding, model.get_input_embeddings()).weight
    return sum(p.numel() for p in model.parameters() if p is embedding or id(p) not in head)


def _compute_rotary_at_first_call(model: Any) -> None:
    """Rotary frequencies are in no checkpoint: after a build without storage they are computed at the first call."""

    def compute(module: nn.Module, arguments: Any) -> None:
        if not next(model.parameters()).is_meta:
            for part in model.modules():
                if hasattr(part, "original_inv_freq"):
                    model._init_weights(part)
            handle.remove()

    handle = model.register_forward_pre_hook(compute)
