"""GGUF files: described from their header, loaded to the numbers they hold, and told when they are damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from model_recipe import recipe
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import fusionkit
from fusionkit.blocks.language_models import causal
from fusionkit.blocks.language_models.gguf_facts import gguf_config, gguf_vocabulary
from fusionkit.blocks.language_models.specs import CausalConfig, describe_causal
from fusionkit.errors import BuildError, ShapeError
from fusionkit.plugin import BlockSite

WIDTH, HEADS, KEY_VALUES, LAYERS, HIDDEN = 64, 4, 2, 2, 96
KINDS = ["llama", "qwen2", "qwen3"]
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def original(kind: str, *, tied: bool) -> PreTrainedModel:
    torch.manual_seed(0)
    more = {"head_dim": WIDTH // HEADS} if kind == "qwen3" else {}
    config = AutoConfig.for_model(
        kind,
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_VALUES,
        vocab_size=512,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        rms_norm_eps=1e-6,
        **more,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    return model


def paired(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rows of a query or key projection as llama files have them: the two halves of every head interleaved."""
    return weight.reshape(heads, 2, -1, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)


def write(path: Path, model: PreTrainedModel, kind: str, *, eight_bits: bool = False) -> Path:
    writer = gguf.GGUFWriter(path, kind)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_VALUES)
    writer.add_context_length(256)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    if kind == "qwen3":
        writer.add_key_length(WIDTH // HEADS)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{number}" for number in range(500)])
    writer.add_token_types([1] * 500)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    tied = model.config.tie_word_embeddings
    for name, value in model.state_dict().items():
        if tied and name.startswith("lm_head"):
            continue
        module, _, last = name.rpartition(".")
        if module in NAMES:
            target = NAMES[module]
        else:
            layer, _, inner = module.removeprefix("model.layers.").partition(".")
            target = f"blk.{layer}.{LAYER_NAMES[inner]}"
        data = value.numpy()
        if kind == "llama" and target.endswith(("attn_q", "attn_k")):
            data = paired(data, HEADS if target.endswith("q") else KEY_VALUES)
        if eight_bits and data.ndim == 2:
            packed = gguf.quants.quantize(data, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(f"{target}.{last}", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(f"{target}.{last}", data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def loaded(path: Path, **options: Any) -> PreTrainedModel:
    config = CausalConfig(model=str(path), **options)
    info = describe_causal(config)
    return causal.build_causal(config, BlockSite(info=info, rows=info.embedding_rows(40))).eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_file_is_described_and_loaded(kind: str, tied: bool, tmp_path: Path) -> None:
    model = original(kind, tied=tied)
    path = write(tmp_path / "small.gguf", model, kind)
    assert gguf_vocabulary(str(path)) == 500
    facts = gguf_config(str(path))
    for name in ("hidden_size", "num_hidden_layers", "vocab_size", "tie_word_embeddings", "num_key_value_heads"):
        assert facts[name] == getattr(model.config, name), name
    found = loaded(path)
    assert found.get_input_embeddings().weight.shape == (576, WIDTH)
    assert (found.get_output_embeddings().weight is found.get_input_embeddings().weight) == tied
    x_BTE = torch.randn(2, 9, WIDTH)
    with torch.no_grad():
        expected = model(inputs_embeds=x_BTE).logits
        torch.testing.assert_close(found(inputs_embeds=x_BTE).logits[..., :512], expected, rtol=0, atol=1e-5)


def test_files_in_few_bits_are_expanded(tmp_path: Path) -> None:
    model = original("qwen2", tied=False)
    found = loaded(write(tmp_path / "small.gguf", model, "qwen2", eight_bits=True))
    assert found.dtype == torch.float32
    weight = found.model.layers[0].mlp.up_proj.weight
    exact = model.model.layers[0].mlp.up_proj.weight
    assert not torch.equal(weight, exact)
    torch.testing.assert_close(weight, exact, rtol=0, atol=0.01)


def test_a_recipe_may_name_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "small.gguf", original("qwen2", tied=True), "qwen2")
    asked = recipe(language_model={"type": "causal", "model": str(path), "tokenizer": "builtin:tiny"})
    plan = fusionkit.plan(asked)
    model = fusionkit.build(asked)
    assert sum(parameter.numel() for parameter in model.parameters()) == plan.parameters


def test_without_the_package_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "small.gguf", original("qwen2", tied=True), "qwen2")
    monkeypatch.setattr(causal, "find_spec", lambda name: None)
    with pytest.raises(
        BuildError, match=r"package gguf, which is not installed \(run: pip install 'fusionkit\[gguf\]'\)"
    ):
        loaded(path)


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    good = write(tmp_path / "good.gguf", original("qwen2", tied=True), "qwen2").read_bytes()
    cases = {
        "missing.gguf": (None, "not a readable GGUF file"),
        "text.gguf": (b"hello", "not a GGUF file"),
        "empty.gguf": (b"", "not a GGUF file"),
        "short.gguf": (good[:60], "not a readable GGUF file"),
        "version.gguf": (b"GGUF" + bytes([9, 0, 0, 0]) + good[8:], "GGUF version 9, expected"),
        "length.gguf": (good[:24] + b"\xff" * 8 + good[32:], "not a readable GGUF file"),
        "kind.gguf": (
            good.replace(b"qwen2", b"mamba"),
            r"a decoder of kind 'mamba'; GGUF files of llama, qwen2, qwen3",
        ),
    }
    for name, (content, message) in cases.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ShapeError, match=message):
            describe_causal(CausalConfig(model=str(path), tokenizer="builtin:tiny"))
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(good[: len(good) // 2])
    with pytest.raises(BuildError, match=r"cut\.gguf"):
        loaded(cut, tokenizer="builtin:tiny")
