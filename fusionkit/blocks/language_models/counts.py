"""Shapes and costs of the decoders that can be planned without their library. Torch-free.

The mapping is a transformers config: the usual field names, `model_type` first. Only the fields listed here may
appear in a recipe; a config.json may hold more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MODEL_TYPES = ("llama", "qwen2", "qwen3", "lfm2")

REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_COMMON = (
    "model_type",
    *REQUIRED,
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
    "tie_word_embeddings",
    "rope_theta",
    "rope_parameters",
    "initializer_range",
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
_LFM2 = (
    "norm_eps",
    "layer_types",
    "conv_bias",
    "conv_L_cache",
    "block_auto_adjust_ff_dim",
    "block_ffn_dim_multiplier",
    "block_multiple_of",
)
FIELDS: Mapping[str, frozenset[str]] = {
    "llama": frozenset({*_COMMON, "hidden_act", "rms_norm_eps", "head_dim", "attention_bias", "mlp_bias"}),
    "qwen2": frozenset({*_COMMON, "hidden_act", "rms_norm_eps"}),
    "qwen3": frozenset({*_COMMON, "hidden_act", "rms_norm_eps", "head_dim", "attention_bias"}),
    "lfm2": frozenset({*_COMMON, *_LFM2} - {"attention_dropout"}),
}
"""Fields a recipe's `config` may hold, by model type."""

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": {
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
    },
    "qwen2": {"max_position_embeddings": 32768, "tie_word_embeddings": False},
    "qwen3": {"max_position_embeddings": 32768, "tie_word_embeddings": False, "attention_bias": False, "head_dim": 128},
    "lfm2": {
        "max_position_embeddings": 128_000,
        "tie_word_embeddings": True,
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_auto_adjust_ff_dim": True,
        "block_ffn_dim_multiplier": 1.0,
        "block_multiple_of": 256,
    },
}
"""What transformers takes for a field that is not given; a test compares. Key-value heads default to the heads."""

_OLD_NAMES: Mapping[str, str] = {"block_ff_dim": "intermediate_size", "tie_embedding": "tie_word_embeddings"}
"""Names that older LFM2 files use."""


@dataclass(frozen=True, slots=True)
class Decoder:
    """The shape of a decoder-only transformer, with short convolutions in place of attention in some layers."""

    model_type: str
    width: int
    depth: int
    hidden: int
    heads: int
    key_value_heads: int
    head_width: int
    context_length: int
    tied: bool
    attention_layers: int
    query_key_value_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    query_key_norm: bool = False
    conv_kernel: int = 0
    conv_bias: bool = False

    def params(self, rows: int) -> int:
        """Parameters with `rows` embedding rows; tied embeddings count once."""
        blocks = self.attention_layers * self._attention_params() + self._conv_layers * self._conv_params()
        mlp = 3 * self.width * self.hidden + self.mlp_bias * (2 * self.hidden + self.width)
        norms = (2 * self.depth + 1) * self.width
        return blocks + self.depth * mlp + norms + rows * self.width * (1 if self.tied else 2)

    def flops(self, tokens: int, vocab_size: int) -> int:
        """Forward FLOPs for one sequence of `tokens`; attention over all pairs; the output head for the last token only."""
        query, key_value = self.heads * self.head_width, self.key_value_heads * self.head_width
        projections = 2 * self.width * (2 * query + 2 * key_value)
        attention = self.attention_layers * (tokens * projections + 4 * tokens * tokens * query)
        # The library pads the convolution on both sides and drops the tail, so kernel - 1 more positions are computed.
        conv = 8 * tokens * self.width**2 + 2 * (tokens + self.conv_kernel - 1) * self.width * self.conv_kernel
        mlp = 6 * tokens * self.width * self.hidden
        return attention + self._conv_layers * conv + self.depth * mlp + 2 * self.width * vocab_size

    @property
    def state(self) -> str:
        """What besides attention hands something on from token to token, in words."""
        return f"short convolutions in {self._conv_layers} of its {self.depth} blocks" if self._conv_layers else ""

    @property
    def _conv_layers(self) -> int:
        return self.depth - self.attention_layers

    def _attention_params(self) -> int:
        query, key_value = self.heads * self.head_width, self.key_value_heads * self.head_width
        weights = self.width * (2 * query + 2 * key_value)
        biases = self.query_key_value_bias * (query + 2 * key_value) + self.output_bias * self.width
        return weights + biases + self.query_key_norm * 2 * self.head_width

    def _conv_params(self) -> int:
        weights = 4 * self.width**2 + self.conv_kernel * self.width
        return weights + self.conv_bias * 5 * self.width


def read_decoder(config: Mapping[str, Any], where: str = "config") -> Decoder:
    """The shape a config stands for.

    Raises ValueError, naming the field, when the model type is not one of MODEL_TYPES or a size is missing or wrong.
    """
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        raise ValueError(f"{where}.model_type: expected one of {', '.join(MODEL_TYPES)}, got {model_type!r}")
    facts = {**DEFAULTS[model_type], **{_OLD_NAMES.get(name, name): value for name, value in config.items()}}
    sizes = {name: _positive(facts, name, where) for name in REQUIRED}
    width, depth, heads = sizes["hidden_size"], sizes["num_hidden_layers"], sizes["num_attention_heads"]
    key_value_heads = _positive(facts, "num_key_value_heads", where, default=heads)
    if heads % key_value_heads:
        raise ValueError(f"{where}.num_key_value_heads: {key_value_heads} does not divide the {heads} attention heads")
    if facts.get("head_dim") is None and width % heads:
        raise ValueError(f"{where}.num_attention_heads: {heads} does not divide hidden_size {width}")
    head_width = _positive(facts, "head_dim", where, default=width // heads)
    if head_width % 2:
        raise ValueError(f"{where}: heads of width {head_width} cannot be rotated; expected an even width")
    attention_bias = bool(facts.get("attention_bias", False))
    is_lfm2 = model_type == "lfm2"
    return Decoder(
        model_type=model_type,
        width=width,
        depth=depth,
        hidden=_lfm2_hidden(facts) if is_lfm2 else sizes["intermediate_size"],
        heads=heads,
        key_value_heads=key_value_heads,
        head_width=head_width,
        context_length=_positive(facts, "max_position_embeddings", where),
        tied=bool(facts["tie_word_embeddings"]),
        attention_layers=_attention_layers(facts, depth, where) if is_lfm2 else depth,
        query_key_value_bias=model_type == "qwen2" or attention_bias,
        output_bias=attention_bias,
        mlp_bias=bool(facts.get("mlp_bias", False)),
        query_key_norm=model_type in ("qwen3", "lfm2"),
        conv_kernel=_positive(facts, "conv_L_cache", where) if is_lfm2 else 0,
        conv_bias=bool(facts.get("conv_bias", False)),
    )


def unknown_fields(config: Mapping[str, Any]) -> list[str]:
    """Fields of a recipe's `config` that are not taken for its model type."""
    return sorted(set(config) - FIELDS.get(str(config.get("model_type")), frozenset(config)))


def _positive(facts: Mapping[str, Any], name: str, where: str, default: int | None = None) -> int:
    value = facts.get(name)
    if value is None:
        value = default
    if value is None:
        raise ValueError(f"{where}.{name}: missing; expected a whole number")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{where}.{name}: expected a whole number of at least 1, got {value!r}")
    return value


def _lfm2_hidden(facts: Mapping[str, Any]) -> int:
    """Inner width of LFM2's MLP: two thirds of the stated size, scaled, rounded up to a multiple, unless told not to."""
    hidden = int(facts["intermediate_size"])
    if not facts["block_auto_adjust_ff_dim"]:
        return hidden
    hidden = int(2 * hidden / 3)
    if facts["block_ffn_dim_multiplier"] is None:
        return hidden
    multiple = int(facts["block_multiple_of"])
    return -(-int(facts["block_ffn_dim_multiplier"] * hidden) // multiple) * multiple


def _attention_layers(facts: Mapping[str, Any], depth: int, where: str) -> int:
    kinds = facts.get("layer_types")
    if kinds is None:
        indices = facts.get("full_attn_idxs")
        return depth if indices is None else len(set(indices) & set(range(depth)))
    if not isinstance(kinds, list) or len(kinds) != depth or set(kinds) - {"conv", "full_attention"}:
        raise ValueError(f"{where}.layer_types: expected {depth} entries, each conv or full_attention, got {kinds!r}")
    return kinds.count("full_attention")
