"""Configs of known decoders, entered by hand: the hub cannot be asked when the table is generated.

Source of every entry: the published config.json of the hub id, from memory, and checked against the parameter count
its card states (`parameters`, tied embeddings once). Sizes of tokenizers are `len(tokenizer)`.
"""

from __future__ import annotations

from typing import Any

QWEN2_TOKENIZER, QWEN25_TOKENIZER, QWEN3_TOKENIZER = 151_646, 151_665, 151_669


def _sizes(hidden: int, layers: int, heads: int, key_values: int, mlp: int, rows: int, tied: bool) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_values,
        "vocab_size": rows,
        "tie_word_embeddings": tied,
    }


def _decoder(
    model_type: str, sizes: dict[str, Any], parameters: int, tokenizer: int, licence: str, **more: Any
) -> dict[str, Any]:
    return {
        "config": {"model_type": model_type, **sizes, **more},
        "parameters": parameters,
        "tokenizer_size": tokenizer,
        "licence": licence,
        "source": "published config.json, entered by hand; parameter count of the model card",
    }


def _qwen(
    generation: str, sizes: dict[str, Any], parameters: int, context: int, licence: str = "apache-2.0", **more: Any
) -> dict[str, Any]:
    tokenizer = {"2": QWEN2_TOKENIZER, "2.5": QWEN25_TOKENIZER, "3": QWEN3_TOKENIZER}[generation]
    return _decoder(
        "qwen3" if generation == "3" else "qwen2",
        sizes,
        parameters,
        tokenizer,
        licence,
        max_position_embeddings=context,
        rms_norm_eps=1e-6,
        rope_theta=1_000_000.0,
        bos_token_id=151_643,
        eos_token_id=more.pop("eos_token_id", 151_643),
        **more,
    )


def _smollm2(sizes: dict[str, Any], parameters: int, theta: float, instruct: bool) -> dict[str, Any]:
    ends = (
        {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
        if instruct
        else {"bos_token_id": 0, "eos_token_id": 0}
    )
    return _decoder(
        "llama",
        sizes,
        parameters,
        49_152,
        "apache-2.0",
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_theta=theta,
        **ends,
    )


_HALF_B = _sizes(896, 24, 14, 2, 4864, 151_936, True)
_ONE_AND_A_HALF_B = _sizes(1536, 28, 12, 2, 8960, 151_936, True)
_THREE_B = _sizes(2048, 36, 16, 2, 11_008, 151_936, True)
_SEVEN_B = _sizes(3584, 28, 28, 4, 18_944, 152_064, False)
_135M = _sizes(576, 30, 9, 3, 1536, 49_152, True)
_360M = _sizes(960, 32, 15, 5, 2560, 49_152, True)
_1700M = _sizes(2048, 24, 32, 32, 8192, 49_152, True)
_IM_END = 151_645

DECODERS: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2-0.5B": _qwen("2", _HALF_B, 494_032_768, 131_072),
    "Qwen/Qwen2-0.5B-Instruct": _qwen("2", _HALF_B, 494_032_768, 32_768, eos_token_id=_IM_END),
    "Qwen/Qwen2-1.5B": _qwen("2", _ONE_AND_A_HALF_B, 1_543_714_304, 131_072),
    "Qwen/Qwen2-1.5B-Instruct": _qwen("2", _ONE_AND_A_HALF_B, 1_543_714_304, 32_768, eos_token_id=_IM_END),
    "Qwen/Qwen2-7B": _qwen("2", _SEVEN_B, 7_615_616_512, 131_072),
    "Qwen/Qwen2-7B-Instruct": _qwen("2", _SEVEN_B, 7_615_616_512, 32_768, eos_token_id=_IM_END),
    "Qwen/Qwen2.5-0.5B": _qwen("2.5", _HALF_B, 494_032_768, 32_768),
    "Qwen/Qwen2.5-0.5B-Instruct": _qwen("2.5", _HALF_B, 494_032_768, 32_768, eos_token_id=_IM_END),
    "Qwen/Qwen2.5-1.5B": _qwen("2.5", _ONE_AND_A_HALF_B, 1_543_714_304, 131_072),
    "Qwen/Qwen2.5-1.5B-Instruct": _qwen("2.5", _ONE_AND_A_HALF_B, 1_543_714_304, 32_768, eos_token_id=_IM_END),
    "Qwen/Qwen2.5-3B": _qwen("2.5", _THREE_B, 3_085_938_688, 32_768, licence="qwen-research"),
    "Qwen/Qwen2.5-7B": _qwen("2.5", _SEVEN_B, 7_615_616_512, 131_072),
    "Qwen/Qwen2.5-7B-Instruct": _qwen("2.5", _SEVEN_B, 7_615_616_512, 32_768, eos_token_id=_IM_END),
    "Qwen/Qwen3-0.6B": _qwen(
        "3", _sizes(1024, 28, 16, 8, 3072, 151_936, True), 596_049_920, 40_960, head_dim=128, eos_token_id=_IM_END
    ),
    "Qwen/Qwen3-1.7B": _qwen(
        "3", _sizes(2048, 28, 16, 8, 6144, 151_936, True), 1_720_574_976, 40_960, head_dim=128, eos_token_id=_IM_END
    ),
    "Qwen/Qwen3-4B": _qwen(
        "3", _sizes(2560, 36, 32, 8, 9728, 151_936, True), 4_022_468_096, 40_960, head_dim=128, eos_token_id=_IM_END
    ),
    "Qwen/Qwen3-8B": _qwen(
        "3", _sizes(4096, 36, 32, 8, 12_288, 151_936, False), 8_190_735_360, 40_960, head_dim=128, eos_token_id=_IM_END
    ),
    "HuggingFaceTB/SmolLM2-135M": _smollm2(_135M, 134_515_008, 100_000.0, instruct=False),
    "HuggingFaceTB/SmolLM2-135M-Instruct": _smollm2(_135M, 134_515_008, 100_000.0, instruct=True),
    "HuggingFaceTB/SmolLM2-360M": _smollm2(_360M, 361_821_120, 100_000.0, instruct=False),
    "HuggingFaceTB/SmolLM2-360M-Instruct": _smollm2(_360M, 361_821_120, 100_000.0, instruct=True),
    "HuggingFaceTB/SmolLM2-1.7B": _smollm2(_1700M, 1_711_376_384, 130_000.0, instruct=False),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": _smollm2(_1700M, 1_711_376_384, 130_000.0, instruct=True),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": _decoder(
        "llama",
        _sizes(2048, 22, 32, 4, 5632, 32_000, False),
        1_100_048_384,
        32_000,
        "apache-2.0",
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        rope_theta=10_000.0,
        bos_token_id=1,
        eos_token_id=2,
    ),
}
"""Hub id -> what the table says of it."""
