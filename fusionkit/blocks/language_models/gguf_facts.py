"""What a GGUF file says of its decoder, read from its header. Torch-free, and without the gguf package.

Layout: magic, version, counts, then key-value pairs, then one entry per tensor; all little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from fusionkit.errors import ShapeError

SUFFIX = ".gguf"
VERSIONS = (2, 3)
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9

_FIELDS: Mapping[str, str] = {
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "context_length": "max_position_embeddings",
    "rope.freq_base": "rope_theta",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_ENDS = {"tokenizer.ggml.bos_token_id": "bos_token_id", "tokenizer.ggml.eos_token_id": "eos_token_id"}
ARCHITECTURES = ("llama", "qwen2", "qwen3")


def is_gguf(source: str | None) -> bool:
    return source is not None and source.endswith(SUFFIX)


def gguf_config(path: str) -> dict[str, Any]:
    """The transformers config fields of the decoder in a file; raises ShapeError when it cannot be read or is of another kind."""
    values, tensors = _header(path)
    kind = values.get("general.architecture")
    if kind not in ARCHITECTURES:
        raise ShapeError(
            f"{path}: a decoder of kind {kind!r}; GGUF files of {', '.join(ARCHITECTURES)} are read", field="model"
        )
    facts: dict[str, Any] = {"model_type": kind}
    facts |= {ours: values[f"{kind}.{theirs}"] for theirs, ours in _FIELDS.items() if f"{kind}.{theirs}" in values}
    facts |= {ours: values[theirs] for theirs, ours in _ENDS.items() if theirs in values}
    if kind == "qwen3" and f"{kind}.attention.key_length" in values:
        facts["head_dim"] = values[f"{kind}.attention.key_length"]
    if "token_embd.weight" not in tensors:
        raise ShapeError(f"{path}: no embedding table (token_embd.weight) in the file", field="model")
    facts["vocab_size"] = tensors["token_embd.weight"][-1]
    facts["tie_word_embeddings"] = "output.weight" not in tensors
    return facts


def gguf_vocabulary(path: str) -> int:
    """How many tokens the tokenizer in a file has."""
    values, _ = _header(path)
    size = values.get("tokenizer.ggml.tokens")
    if not isinstance(size, int):
        raise ShapeError(f"{path}: has no tokenizer; name one", field="tokenizer", hint="for example builtin:tiny")
    return size


@cache
def _header(path: str) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """(key-value pairs, arrays as their lengths; tensor name -> sizes, fastest first)."""
    try:
        with Path(path).open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ShapeError(f"{path}: not a GGUF file", field="model")
            version, tensor_count, pairs = _unpack(file, "<IQQ")
            if version not in VERSIONS:
                raise ShapeError(f"{path}: GGUF version {version}, expected {VERSIONS}", field="model")
            values = {}
            for _ in range(pairs):
                key = _text(file)
                values[key] = _value(file, _unpack(file, "<I")[0])
            tensors = {}
            for _ in range(tensor_count):
                name = _text(file)
                (dimensions,) = _unpack(file, "<I")
                tensors[name] = _unpack(file, f"<{dimensions}Q")
                _unpack(file, "<IQ")
    except (OSError, ValueError, struct.error, KeyError) as error:
        raise ShapeError(f"{path}: not a readable GGUF file ({error})", field="model") from error
    return values, tensors


def _unpack(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack(layout, file.read(struct.calcsize(layout)))


def _text(file: BinaryIO) -> str:
    (length,) = _unpack(file, "<Q")
    if length > 2**24:  # a damaged length would ask for all memory
        raise ValueError(f"a text of {length} bytes")
    return file.read(length).decode("utf-8", errors="replace")


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _TEXT:
        return _text(file)
    if kind != _ARRAY:
        return _unpack(file, f"<{_NUMBERS[kind]}")[0]
    inner, count = _unpack(file, "<IQ")
    if inner in (_TEXT, _ARRAY):
        for _ in range(count):
            _value(file, inner)
    else:
        file.seek(count * struct.calcsize(f"<{_NUMBERS[inner]}"), 1)
    return count
