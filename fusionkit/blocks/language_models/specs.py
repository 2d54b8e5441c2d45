"""Language models: config, facts and spec. Torch-free."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from fusionkit import architectures
from fusionkit.blocks.language_models.counts import MODEL_TYPES, Decoder, read_decoder, unknown_fields
from fusionkit.blocks.language_models.gguf_facts import gguf_config, is_gguf
from fusionkit.blocks.language_models.vocabulary import tokenizer_size
from fusionkit.errors import ShapeError
from fusionkit.plugin import BlockConfig, BlockSpec, LanguageModelInfo


class NewRows(BaseModel):
    """How embedding rows of added tokens start."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", defer_build=True)

    init: Literal["mean", "ordinal"] = Field(
        "mean", description="`mean` of the present rows, or `ordinal`: coordinate tokens start as sines of their value."
    )
    std: PositiveFloat | None = Field(
        None, description="Standard deviation of the new rows; that of the present rows if not given."
    )


class CausalConfig(BlockConfig):
    """A decoder of the transformers library, named or described."""

    type: Literal["causal"] = "causal"
    model: str | None = Field(
        None,
        min_length=1,
        description="Hub id (Qwen/Qwen2-7B), folder with config.json, or a .gguf file; or give `config`.",
    )
    config: dict[str, JsonValue] | None = Field(
        None,
        description="transformers config fields, `model_type` (llama, qwen2, qwen3, lfm2: planned without transformers; "
        "any other: with `plan --meta` and when built) among them; or give `model`.",
    )
    weights: str | None = Field(
        None,
        min_length=1,
        description="`pretrained`, `random`, a folder of safetensors or a .gguf file. "
        "If not given: `pretrained` with `model`, else `random`.",
    )
    revision: str | None = Field(None, description="Branch, tag or commit of the hub id.")
    tokenizer: str | None = Field(
        None, min_length=1, description="`builtin:NAME`, a folder or a hub id; the model's own if not given."
    )
    embedding_std: PositiveFloat | None = Field(
        None,
        description="Standard deviation of the embedding rows of a random decoder; its library's choice if not given.",
    )
    new_rows: NewRows = Field(NewRows(), description="How rows of added tokens start.")
    quantize: Literal["4bit", "8bit"] | None = Field(
        None,
        description="Hold the decoder's linear layers in 4 (NF4) or 8 bits and the rest in bfloat16; needs bitsandbytes.",
    )

    @field_validator("config")
    @classmethod
    def _readable(cls, config: dict[str, JsonValue] | None) -> dict[str, JsonValue] | None:
        # Of other types only transformers knows the fields; it is asked when the decoder is planned.
        if config is not None and config.get("model_type") in MODEL_TYPES:
            read_decoder(config)
            if unknown := unknown_fields(config):
                raise ValueError(f"{', '.join(unknown)}: not a field of model_type {config['model_type']}")
        return config

    @field_validator("weights")
    @classmethod
    def _filled(cls, weights: str | None, info: ValidationInfo) -> str:
        return weights or ("random" if info.data.get("model") is None else "pretrained")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.model is None) == (self.config is None):
            raise ValueError("give exactly one of `model` and `config`")
        if self.embedding_std is not None and self.weights != "random":
            raise ValueError("embedding_std: only for `weights: random`")
        if self.config is not None:
            if self.weights == "pretrained":
                raise ValueError("weights: a `config` has no pretrained weights; use `random` or a folder")
            if self.tokenizer is None:
                raise ValueError("tokenizer: a `config` has none of its own; name one, for example `builtin:tiny`")
            if self.revision is not None:
                raise ValueError("revision: only a hub id has revisions")
        return self


class TokenShiftConfig(CausalConfig):
    """A decoder from a config, trained from scratch, whose word embeddings carry the words before them."""

    type: Literal["token_shift"] = "token_shift"  # type: ignore[assignment]
    shift: PositiveInt = Field(3, le=16, description="How many tokens back an embedding looks.")

    @model_validator(mode="after")
    def _from_scratch(self) -> Self:
        if self.quantize is not None:
            raise ValueError("quantize: token_shift is trained from scratch, and quantised weights do not train")
        if self.config is None:
            raise ValueError("token_shift builds from `config`; a pretrained `model` does not know shifted embeddings")
        if not isinstance(self.config.get("pad_token_id"), int):
            raise ValueError(
                "config.pad_token_id: name the padding token's id, so that padding shifts nothing into a row"
            )
        return self


def _count_flops(decoder: Decoder, vocab_size: int, tokens: int) -> int:
    return decoder.flops(tokens, vocab_size)


def describe_causal(config: CausalConfig) -> LanguageModelInfo:
    """Facts of a decoder, from its config, the built-in table or a local folder."""
    facts, entry = decoder_config(config), _entry(config)
    field = "config" if config.model is None else "model"
    try:
        decoder = _decoder(facts, config.model or "config")
    except ValueError as error:
        raise ShapeError(str(error), field=field) from error
    if decoder is None:
        raise ShapeError(
            f"{config.model or 'config'}.model_type: the costs of {facts.get('model_type')!r} are not known without "
            f"transformers, as those of {', '.join(MODEL_TYPES)} are",
            field=field,
            hint="run `fusionkit plan --meta`; building asks transformers too",
        )
    own_size = entry.get("tokenizer_size") if config.tokenizer in (None, config.model) else None
    size = int(own_size) if own_size is not None else tokenizer_size(config.tokenizer or str(config.model))
    vocab_size = facts.get("vocab_size", size)
    if not isinstance(vocab_size, int) or vocab_size < size:
        raise ShapeError(
            f"vocab_size {vocab_size!r} is smaller than the {size} entries of the tokenizer",
            field="config" if config.model is None else "tokenizer",
        )
    return LanguageModelInfo(
        width=decoder.width,
        depth=decoder.depth,
        vocab_size=vocab_size,
        tokenizer_size=size,
        context_length=decoder.context_length,
        tied=decoder.tied,
        licence=str(
            entry.get("licence", "none: trained from scratch" if config.model is None else "unknown: see its folder")
        ),
        count_params=decoder.params,
        count_flops=partial(_count_flops, decoder, vocab_size),
        name=config.model or decoder.model_type,
        state=decoder.state,
    )


def _decoder(facts: Mapping[str, Any], where: str) -> Any | None:
    """The decoder's shape and costs: by our own formulas, else as transformers builds it, if it may be asked."""
    if facts.get("model_type") in MODEL_TYPES or not isinstance(facts.get("model_type"), str):
        return read_decoder(facts, where=where)
    return architectures.measured_decoder(facts)


def describe_token_shift(config: TokenShiftConfig) -> LanguageModelInfo:
    """Facts of the decoder, with one weight per channel and distance more."""
    info = describe_causal(config)
    return replace(info, count_params=partial(_with_shift, info.count_params, config.shift * info.width))


def _with_shift(count: Callable[[int], int], extra: int, rows: int) -> int:
    return count(rows) + extra


def decoder_config(config: CausalConfig) -> Mapping[str, Any]:
    """The transformers config fields the recipe stands for; raises ShapeError naming the ways on if they are not known."""
    if config.config is not None:
        return config.config
    name = str(config.model)
    if is_gguf(name):
        return gguf_config(name)
    folder = Path(name)
    if folder.is_dir():
        try:
            facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ShapeError(f"{folder / 'config.json'}: cannot be read ({error})", field="model") from error
        if not isinstance(facts, dict):
            raise ShapeError(f"{folder / 'config.json'}: expected a JSON object", field="model")
        return facts
    entry = _entry(config)
    if not entry:
        near = architectures.near("transformers", name)
        raise ShapeError(
            f"language model '{name}' is neither a folder here nor in the built-in table"
            + (f"; listed and similar: {', '.join(near)}" if near else ""),
            field="model",
            hint="download it and give its folder, give its fields under `config:`, or run `fusionkit plan --meta`",
        )
    facts = entry["config"]
    return dict(facts)


def _entry(config: CausalConfig) -> Mapping[str, Any]:
    """What the built-in table knows of the model; empty when it is not listed or is a local folder."""
    if config.model is None or is_gguf(config.model) or Path(config.model).is_dir():
        return {}
    return architectures.facts("transformers", config.model) or {}


CAUSAL = BlockSpec(
    api=1,
    family="language_models",
    config=CausalConfig,
    describe=describe_causal,
    factory="fusionkit.blocks.language_models.causal:build_causal",
    summary="A decoder of the transformers library: Qwen2, Qwen3, Llama, LFM2; pretrained, local or from a config.",
    examples=(
        MappingProxyType(
            {
                "config": {
                    "model_type": "lfm2",
                    "hidden_size": 64,
                    "intermediate_size": 128,
                    "block_auto_adjust_ff_dim": False,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 4,
                    "layer_types": ["conv", "full_attention"],
                },
                "tokenizer": "builtin:tiny",
            }
        ),
        MappingProxyType(
            {
                "config": {
                    "model_type": "qwen2",
                    "hidden_size": 32,
                    "intermediate_size": 64,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 4,
                    "num_key_value_heads": 2,
                    "max_position_embeddings": 512,
                },
                "tokenizer": "builtin:tiny",
                "new_rows": {"init": "ordinal"},
            }
        ),
    ),
)

TOKEN_SHIFT = BlockSpec(
    api=1,
    family="language_models",
    config=TokenShiftConfig,
    describe=describe_token_shift,
    factory="fusionkit.blocks.language_models.token_shift:build_token_shift",
    summary="A small decoder from a config whose word embeddings carry the words before them; learns in minutes.",
    equation="x_i = e_i + sum_k s_k * e_(i-k), k = 1..shift",
    examples=(
        MappingProxyType(
            {
                "config": {
                    "model_type": "llama",
                    "hidden_size": 32,
                    "intermediate_size": 64,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 4,
                    "tie_word_embeddings": True,
                    "pad_token_id": 0,
                },
                "tokenizer": "builtin:tiny",
                "new_rows": {"init": "ordinal"},
            }
        ),
    ),
)
