"""`causal`: a decoder of the transformers library."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from fusionkit.architectures import asking_libraries
from fusionkit.blocks.language_models.counts import MODEL_TYPES
from fusionkit.blocks.language_models.gguf_facts import is_gguf
from fusionkit.blocks.language_models.quantized import quantize_decoder, require_bitsandbytes
from fusionkit.blocks.language_models.specs import CausalConfig, decoder_config, describe_causal
from fusionkit.errors import BuildError
from fusionkit.hub import check_reachable, misfits, not_to_be_had
from fusionkit.ops.precision import default_dtype
from fusionkit.plugin import BlockSite, LanguageModelInfo

PRETRAINED, RANDOM = "pretrained", "random"
_AUTO: Any = AutoModelForCausalLM
_WAYS_ON = "give `model:` (or `weights:`) the folder of a snapshot"


class _GpuAdvice(logging.Filter):
    """Drops the advice to install a CUDA kernel for short convolutions on machines that have no such device."""

    def filter(self, record: logging.LogRecord) -> bool:
        return torch.cuda.is_available() or "causal_conv1d" not in record.getMessage()


logging.getLogger("transformers.integrations.hub_kernels").addFilter(_GpuAdvice())


def build_causal(config: CausalConfig, site: BlockSite) -> PreTrainedModel:
    """The decoder with `site.rows` embedding rows (as many as it has, if 0), on the current default device.

    Rows beyond the pretrained ones are there but not yet meant: the caller initialises them. On the meta device no
    weights are read; rotary frequencies are computed at the first call after the weights have storage.

    Raises BuildError when the weights cannot be had or do not fit, or the decoder is not the planned one.
    """
    info = site.info
    if not isinstance(info, LanguageModelInfo):
        raise BuildError(f"{site.address or 'language model'}: needs `info` (describe_causal(config)) in its site")
    rows = site.rows or info.vocab_size
    on_meta = torch.get_default_device().type == "meta"
    if config.quantize is not None and not on_meta:
        require_bitsandbytes(config.quantize)  # before gigabytes are read
    with default_dtype(torch.bfloat16 if config.quantize else torch.get_default_dtype()):
        model = _random(config, rows) if on_meta or config.weights == RANDOM else _loaded(config, info, rows)
    if on_meta:
        _compute_rotary_at_first_call(model)
    with asking_libraries():
        planned, found = describe_causal(config).count_params(rows), _count(model)
    if planned != found:
        raise BuildError(f"{info.name}: planned {planned} parameters with {rows} embedding rows, the model has {found}")
    if config.quantize is not None and not on_meta:
        quantize_decoder(model, config.quantize)
    return model


def _count(model: PreTrainedModel) -> int:
    """Parameters, tied ones once. While transformers loads a checkpoint it puts off tying, so the head is left out here."""
    head = model.get_output_embeddings()
    tied = head is not None and model.config.tie_word_embeddings
    skipped = {id(parameter) for parameter in head.parameters()} if tied else set()
    embedding = cast(nn.Embedding, model.get_input_embeddings()).weight
    return sum(p.numel() for p in model.parameters() if p is embedding or id(p) not in skipped)


def library_config(config: CausalConfig, rows: int) -> PreTrainedConfig:
    """The transformers config of the decoder, with `rows` embedding rows."""
    facts = {**decoder_config(config), "vocab_size": rows}
    model_type = facts.pop("model_type")
    # What transformers would take instead differs between model types (Qwen2: 32).
    if model_type in MODEL_TYPES:
        facts.setdefault("num_key_value_heads", facts["num_attention_heads"])
    return AutoConfig.for_model(model_type, **facts)


def _random(config: CausalConfig, rows: int) -> PreTrainedModel:
    described = library_config(config, rows)
    model = cast(PreTrainedModel, _AUTO.from_config(described, dtype=torch.get_default_dtype()))
    if config.embedding_std is not None:
        nn.init.normal_(cast(nn.Embedding, model.get_input_embeddings()).weight, std=config.embedding_std)
    return model


def _loaded(config: CausalConfig, info: LanguageModelInfo, rows: int) -> PreTrainedModel:
    """The decoder with its weights, in the default precision, its embedding grown from the stored rows to `rows`."""
    source = str(config.model) if config.weights == PRETRAINED else str(config.weights)
    described = library_config(config, info.vocab_size)
    if is_gguf(source):
        model = _from_gguf(Path(source), described)
    elif Path(source).is_dir():
        model = _from_folder(source, described)
    elif config.weights == PRETRAINED:
        model = _from_hub(source, described, config.revision)
    else:
        raise BuildError(
            f"weights '{source}': no such folder; expected pretrained, random, a folder of safetensors or a .gguf file"
        )
    if rows != info.vocab_size:
        # What the new rows hold is the caller's business: no mean over the vocabulary here.
        model.resize_token_embeddings(rows, mean_resizing=False)
    return model


def _from_gguf(file: Path, described: PreTrainedConfig) -> PreTrainedModel:
    """The weights of a file, expanded to the default precision."""
    if find_spec("gguf") is None:
        raise BuildError(
            f"weights '{file}': reading them needs the package gguf, which is not installed "
            "(run: pip install 'fusionkit[gguf]')"
        )
    try:
        return _from_pretrained(str(file.parent), described, gguf_file=file.name, local_files_only=True)
    except OSError as error:
        raise BuildError(f"weights '{file}': cannot be read: {str(error).splitlines()[0]}") from error


def _from_folder(folder: str, described: PreTrainedConfig) -> PreTrainedModel:
    try:
        return _from_pretrained(folder, described, local_files_only=True)
    except OSError as error:
        raise BuildError(f"weights '{folder}': no weights in the folder: {error}") from error


def _from_hub(hub_id: str, described: PreTrainedConfig, revision: str | None) -> PreTrainedModel:
    try:
        return _from_pretrained(hub_id, described, local_files_only=True, revision=revision)
    except OSError:
        # Not in the cache, or not all of it.
        check_reachable(hub_id, _WAYS_ON)
    try:
        return _from_pretrained(hub_id, described, revision=revision)
    except OSError as error:
        raise not_to_be_had(hub_id, str(error).splitlines()[0], _WAYS_ON) from error


def _from_pretrained(source: str, described: PreTrainedConfig, **options: Any) -> PreTrainedModel:
    """Load strictly: a tensor that is missing, left over or of another shape is a BuildError."""
    named = str(Path(source, options["gguf_file"])) if "gguf_file" in options else source
    try:
        model, report = _AUTO.from_pretrained(
            source,
            config=described,
            dtype=torch.get_default_dtype(),
            use_safetensors=True,
            output_loading_info=True,
            # Where PEFT is installed transformers looks for an adapter, in the network too unless told twice.
            adapter_kwargs={"local_files_only": options.get("local_files_only", False)},
            **options,
        )
    except (RuntimeError, ValueError) as error:
        raise BuildError(f"weights of '{named}' do not fit the planned decoder: {error}") from error
    if faults := misfits(report):
        raise BuildError(f"weights of '{named}' do not fit the planned decoder: {faults}")
    return cast(PreTrainedModel, model)


def _compute_rotary_at_first_call(model: PreTrainedModel) -> None:
    """Rotary frequencies are in no checkpoint: after a build without storage they are computed at the first call."""

    def compute(module: nn.Module, arguments: Any) -> None:
        if not next(model.parameters()).is_meta:
            for part in model.modules():
                if hasattr(part, "original_inv_freq"):
                    cast(Any, model)._init_weights(part)
            handle.remove()

    handle = model.register_forward_pre_hook(compute)
