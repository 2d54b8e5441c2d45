"""`causal`: planned costs are the built ones, configs are read strictly, weights load strictly, decoding is sound."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, PreTrainedModel

from fusionkit import architectures
from fusionkit.blocks.language_models import causal, counts, hub_facts, measured
from fusionkit.blocks.language_models.specs import CAUSAL, CausalConfig, describe_causal
from fusionkit.blocks.language_models.vocabulary import tokenizer_size
from fusionkit.errors import BuildError, ShapeError
from fusionkit.plugin import BlockSite, LanguageModelInfo

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
LFM2 = {"model_type": "lfm2", **SIZES, "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}
DECODERS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **SIZES},
    "llama_tied_biased": {
        "model_type": "llama",
        **SIZES,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "tie_word_embeddings": True,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "qwen2": {"model_type": "qwen2", **SIZES, "num_key_value_heads": 2},
    "qwen3": {"model_type": "qwen3", **SIZES, "head_dim": 8, "tie_word_embeddings": True},
    "qwen3_wide_heads": {"model_type": "qwen3", **SIZES},
    "lfm2": LFM2,
    "lfm2_rounded": {**LFM2, "block_auto_adjust_ff_dim": True, "block_multiple_of": 7, "block_ffn_dim_multiplier": 1.3},
    "lfm2_biased": {**LFM2, "conv_bias": True, "conv_L_cache": 4, "tie_word_embeddings": False},
    "lfm2_attention_only": {name: value for name, value in LFM2.items() if name != "layer_types"},
}
EVERY_DECODER = pytest.mark.parametrize("fields", DECODERS.values(), ids=DECODERS)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the tokenizer.json of 90 entries and ten added ones."""
    folder = tmp_path_factory.mktemp("tokenizer")
    vocabulary = {f"w{index}": index for index in range(90)}
    added = [{"id": index, "content": f"<{index}>"} for index in range(90, 100)]
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": added}))
    return str(folder)


def describe(fields: dict[str, Any], tokenizer: str, **options: Any) -> tuple[CausalConfig, LanguageModelInfo]:
    config = CausalConfig(config=fields, tokenizer=tokenizer, **options)
    return config, describe_causal(config)


def build(fields: dict[str, Any], tokenizer: str, new_tokens: int = 0, **options: Any) -> PreTrainedModel:
    config, info = describe(fields, tokenizer, **options)
    torch.manual_seed(0)
    model = causal.build_causal(config, BlockSite(info=info, rows=info.embedding_rows(new_tokens))).eval()
    if model.device.type != "meta":
        awake(model)
    return model


def awake(model: PreTrainedModel) -> None:
    """Weights large enough that what a layer computes shows in the logits."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)


def numbers(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# -------------------------------------------------------------------------------------------------------- plans
@EVERY_DECODER
@pytest.mark.parametrize("new_tokens", [0, 30])
def test_parameters_are_counted_exactly(fields: dict[str, Any], tokenizer: str, new_tokens: int) -> None:
    info = describe(fields, tokenizer)[1]
    with torch.device("meta"):
        model = build(fields, tokenizer, new_tokens)
    rows = {0: 100, 30: 192}[new_tokens]
    assert info.embedding_rows(new_tokens) == rows == model.get_input_embeddings().weight.shape[0]
    assert info.count_params(rows) == numbers(model)


@EVERY_DECODER
@pytest.mark.parametrize("tokens", [1, 40])
def test_flops_are_those_measured(fields: dict[str, Any], tokenizer: str, tokens: int) -> None:
    info, model = describe(fields, tokenizer)[1], build(fields, tokenizer)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(inputs_embeds=torch.zeros(1, tokens, 32), logits_to_keep=1, use_cache=False)
    assert info.count_flops(tokens) == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("name", architectures.names("transformers"))
def test_listed_decoders_have_the_size_of_their_card(name: str) -> None:
    config, entry = CausalConfig(model=name), architectures.facts("transformers", name)
    info = describe_causal(config)
    with torch.device("meta"):
        model = causal.build_causal(config, BlockSite(info=info))
    assert entry is not None
    assert info.count_params(info.vocab_size) == numbers(model) == entry["parameters"]
    assert model.config.rope_parameters["rope_theta"] == entry["config"]["rope_theta"]
    assert model.config.tie_word_embeddings == info.tied
    assert info.tokenizer_size <= info.vocab_size


def test_qwen2_7b_is_the_flagships_decoder() -> None:
    info = describe_causal(CausalConfig(model="Qwen/Qwen2-7B"))
    assert (info.width, info.depth, info.vocab_size, info.tied) == (3584, 28, 152_064, False)
    assert info.embedding_rows(418) == 152_064
    assert info.embedding_rows(419) == 152_128
    assert info.licence == "apache-2.0"


@pytest.mark.parametrize("model_type", counts.MODEL_TYPES)
def test_defaults_are_the_librarys(model_type: str) -> None:
    theirs = AutoConfig.for_model(model_type)
    ours = counts.DEFAULTS[model_type]
    assert {name: getattr(theirs, name) for name in ours} == dict(ours)
    unknown = [
        name
        for name in counts.FIELDS[model_type]
        if name not in ("rope_theta", "model_type") and not hasattr(theirs, name)
    ]
    assert unknown == []


# ------------------------------------------------------------------------------------------------------ configs
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": None}, "config.hidden_size: missing; expected a whole number"),
        ({"num_hidden_layers": 0}, "config.num_hidden_layers: expected a whole number of at least 1, got 0"),
        ({"intermediate_size": "9"}, "config.intermediate_size: expected a whole number of at least 1, got '9'"),
        ({"num_key_value_heads": 3}, "config.num_key_value_heads: 3 does not divide the 4 attention heads"),
        ({"num_attention_heads": 5}, "config.num_attention_heads: 5 does not divide hidden_size 32"),
        ({"head_dim": 7}, "heads of width 7 cannot be rotated; expected an even width"),
        ({"hidden_sizes": 3}, "hidden_sizes: not a field of model_type llama"),
        ({"model_type": "lfm2", "layer_types": ["conv"]}, "config.layer_types: expected 2 entries"),
        ({"model_type": "lfm2", "layer_types": ["conv", "mamba"]}, "each conv or full_attention"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        CausalConfig(config={"model_type": "llama", **SIZES, **fields}, tokenizer="builtin:tiny")
    assert message in str(caught.value)
    assert caught.value.errors()[0]["loc"] == ("config",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give exactly one of `model` and `config`"),
        ({"model": "a", "config": LFM2}, "give exactly one of `model` and `config`"),
        ({"config": LFM2}, "a `config` has none of its own"),
        ({"config": LFM2, "tokenizer": "t", "weights": "pretrained"}, "a `config` has no pretrained weights"),
        ({"config": LFM2, "tokenizer": "t", "revision": "main"}, "only a hub id has revisions"),
        ({"model": "a", "embedding_std": 0.3}, "embedding_std: only for `weights: random`"),
    ],
)
def test_options_that_contradict_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CausalConfig(**options)


def test_weights_are_filled_in_and_survive_a_round_trip() -> None:
    named, described = CausalConfig(model="Qwen/Qwen2-7B"), CausalConfig(config=LFM2, tokenizer="builtin:tiny")
    assert (named.weights, described.weights) == ("pretrained", "random")
    for config in (named, described):
        assert CausalConfig.model_validate_json(config.model_dump_json()) == config


def test_unlisted_models_and_tokenizers_tell_the_ways_on(tokenizer: str) -> None:
    with pytest.raises(ShapeError, match=r"listed and similar: .*Qwen/Qwen2-7B.*`config:`.*plan --meta") as caught:
        describe_causal(CausalConfig(model="Qwen/Qwen2-8B"))
    assert caught.value.field == "model"
    for name, message in (
        ("builtin:none", "ships with fusionkit"),
        ("a/b", "neither a folder here nor in the built-in"),
    ):
        with pytest.raises(ShapeError, match=message) as caught:
            describe(LFM2, name)
        assert caught.value.field == "tokenizer"
    with pytest.raises(ShapeError, match="vocab_size 50 is smaller than the 100 entries of the tokenizer"):
        describe({**LFM2, "vocab_size": 50}, tokenizer)


def test_tokenizers_are_counted_with_their_added_tokens(tokenizer: str, tmp_path: Path) -> None:
    assert tokenizer_size(tokenizer) == 100
    assert tokenizer_size("Qwen/Qwen2-7B") == 151_646
    unigram = {"model": {"vocab": [["a", -1.0], ["b", -2.0]]}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(unigram))
    assert tokenizer_size(str(tmp_path)) == 2
    broken = tmp_path / "broken"
    broken.mkdir()
    for content in ("{", "{}", None):
        if content is not None:
            (broken / "tokenizer.json").write_text(content)
        with pytest.raises(ShapeError, match=r"tokenizer\.json: not a readable tokenizer\.json"):
            tokenizer_size(str(broken))
        (broken / "tokenizer.json").unlink(missing_ok=True)


@pytest.mark.parametrize("example", CAUSAL.examples)
def test_examples_build(example: dict[str, Any]) -> None:
    config = CausalConfig(**example)
    info = describe_causal(config)
    assert numbers(causal.build_causal(config, BlockSite(info=info))) == info.count_params(info.vocab_size)


# -------------------------------------------------------------------------------------------- any other decoder
MEASURED: dict[str, dict[str, Any]] = {
    "mistral": {"num_key_value_heads": 2, "sliding_window": 4},
    "gemma": {"head_dim": 8, "num_key_value_heads": 1},
    "gemma2": {"head_dim": 8, "num_key_value_heads": 2},
    "gemma3_text": {"head_dim": 8, "num_key_value_heads": 2},
    "phi3": {"pad_token_id": 0, "num_key_value_heads": 2},
    "smollm3": {"pad_token_id": 0, "num_key_value_heads": 2},
    "olmo2": {"pad_token_id": 0, "tie_word_embeddings": True},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2, "head_dim": 8},
}


@pytest.mark.parametrize("model_type", MEASURED)
def test_other_decoders_are_measured(model_type: str, tokenizer: str) -> None:
    fields = {"model_type": model_type, **SIZES, **MEASURED[model_type]}
    with pytest.raises(
        ShapeError, match=rf"costs of '{model_type}' are not known without transformers, as those of llama"
    ):
        describe(fields, tokenizer)
    with architectures.asking_libraries():
        for new_tokens, rows in ((0, 100), (30, 192)):
            info = describe(fields, tokenizer)[1]
            model = build(fields, tokenizer, new_tokens)
            assert model.get_input_embeddings().weight.shape == (rows, info.width)
            assert info.count_params(rows) == numbers(model)
    assert info.tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)
    assert (info.depth, info.width) == (2, 32)
    if model_type != "qwen3_moe":  # on meta every expert runs
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(inputs_embeds=torch.zeros(1, 40, 32), logits_to_keep=1, use_cache=False)
        head = 2 * 32 * (192 - 100)  # described with the rows of the tokenizer
        assert info.count_flops(40) == pytest.approx(counter.get_total_flops() - head, rel=0.01)


@pytest.mark.parametrize(
    "fields", [DECODERS["qwen2"], DECODERS["llama_tied_biased"], LFM2], ids=["qwen2", "llama", "lfm2"]
)
def test_what_is_measured_is_what_is_counted(fields: dict[str, Any]) -> None:
    described = {"num_key_value_heads": 4, **fields, "vocab_size": 100}
    ours, theirs = counts.read_decoder(fields), measured.measure(described)
    for name in ("width", "depth", "tied", "context_length"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.params(100) == theirs.params(100)
    assert ours.params(192) == theirs.params(192)
    assert ours.flops(40, 100) == pytest.approx(theirs.flops(40, 100), rel=0.01)


def test_a_model_type_that_nobody_knows_is_told(tokenizer: str) -> None:
    for model_type, reason in (("qwen22", "transformers builds no decoder from it"), ("siglip", "no decoder from it")):
        with architectures.asking_libraries(), pytest.raises(ShapeError, match=reason):
            describe({"model_type": model_type, **SIZES}, tokenizer)


# ----------------------------------------------------------------------------------------------------- building
@EVERY_DECODER
def test_a_decoder_built_without_storage_computes_its_rotary_frequencies(
    fields: dict[str, Any], tokenizer: str
) -> None:
    real = build(fields, tokenizer)
    with torch.device("meta"):
        empty = build(fields, tokenizer)
    filled = empty.to_empty(device="cpu")
    for buffer in filled.buffers():
        buffer.fill_(3.0)
    filled.load_state_dict(real.state_dict())
    filled.tie_weights()
    x_BTE = torch.randn(2, 9, 32)
    with torch.no_grad():
        torch.testing.assert_close(filled(inputs_embeds=x_BTE).logits, real(inputs_embeds=x_BTE).logits)
    assert not filled._forward_pre_hooks


def test_tied_embeddings_are_one_tensor(tokenizer: str) -> None:
    tied = build({**LFM2, "tie_word_embeddings": True}, tokenizer, new_tokens=20)
    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight


def test_embeddings_start_with_the_spread_asked_for(tokenizer: str) -> None:
    config, info = describe(LFM2, tokenizer, embedding_std=0.5)
    model = causal.build_causal(config, BlockSite(info=info))
    assert model.get_input_embeddings().weight.std().item() == pytest.approx(0.5, rel=0.1)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_weights_have_the_default_precision(tokenizer: str) -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = build(LFM2, tokenizer)
    finally:
        torch.set_default_dtype(torch.float32)
    assert model.dtype == torch.bfloat16


def test_a_site_without_facts_is_refused(tokenizer: str) -> None:
    with pytest.raises(BuildError, match="needs `info`"):
        causal.build_causal(describe(LFM2, tokenizer)[0], BlockSite())


def test_a_decoder_that_is_not_the_planned_one_is_refused(tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    other = describe({**LFM2, "intermediate_size": 64}, tokenizer)[1]
    monkeypatch.setattr(causal, "describe_causal", lambda config: other)
    with pytest.raises(BuildError, match=r"lfm2: planned .* parameters with 100 embedding rows, the model has"):
        causal.build_causal(describe(LFM2, tokenizer)[0], BlockSite(info=other))


# ------------------------------------------------------------------------------------------------------ weights
@pytest.fixture(scope="module")
def snapshot(tokenizer: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the hub has it: config.json, safetensors and the tokenizer."""
    folder = tmp_path_factory.mktemp("snapshot")
    build(DECODERS["qwen2"], tokenizer).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((Path(tokenizer) / "tokenizer.json").read_bytes())
    return folder


def loaded(config: CausalConfig, new_tokens: int = 0) -> PreTrainedModel:
    info = describe_causal(config)
    return causal.build_causal(config, BlockSite(info=info, rows=info.embedding_rows(new_tokens))).eval()


def test_a_folder_is_described_and_loaded(snapshot: Path, tokenizer: str) -> None:
    original, x_BTE = build(DECODERS["qwen2"], tokenizer), torch.randn(1, 5, 32)
    by_model = loaded(CausalConfig(model=str(snapshot)))
    by_weights = loaded(CausalConfig(config=DECODERS["qwen2"], tokenizer=tokenizer, weights=str(snapshot)))
    random = loaded(CausalConfig(model=str(snapshot), weights="random"))
    with torch.no_grad():
        expected = original(inputs_embeds=x_BTE).logits
        assert torch.equal(by_model(inputs_embeds=x_BTE).logits, expected)
        assert torch.equal(by_weights(inputs_embeds=x_BTE).logits, expected)
        assert not torch.equal(random(inputs_embeds=x_BTE).logits, expected)


def test_rows_grow_and_keep_what_they_hold(snapshot: Path, tokenizer: str) -> None:
    original, grown = build(DECODERS["qwen2"], tokenizer), loaded(CausalConfig(model=str(snapshot)), new_tokens=30)
    for theirs, ours in (
        (original.get_input_embeddings(), grown.get_input_embeddings()),
        (original.get_output_embeddings(), grown.get_output_embeddings()),
    ):
        assert ours.weight.shape == (192, 32)
        assert torch.equal(ours.weight[:100], theirs.weight)
    assert grown.config.vocab_size == 192


def test_weights_of_another_decoder_are_refused(snapshot: Path, tokenizer: str) -> None:
    for fields in ({**DECODERS["qwen2"], "num_hidden_layers": 3}, {**DECODERS["qwen2"], "num_hidden_layers": 1}, LFM2):
        with pytest.raises(BuildError, match="do not fit the planned decoder: "):
            loaded(CausalConfig(config=fields, tokenizer=tokenizer, weights=str(snapshot)))
    with pytest.raises(BuildError, match="do not fit the planned decoder"):
        loaded(
            CausalConfig(
                config={**DECODERS["qwen2"], "intermediate_size": 40}, tokenizer=tokenizer, weights=str(snapshot)
            )
        )


def test_folders_without_weights_are_named(tokenizer: str, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="no such folder; expected pretrained, random, a folder of safetensors"):
        loaded(CausalConfig(config=LFM2, tokenizer=tokenizer, weights=str(tmp_path / "none")))
    with pytest.raises(BuildError, match="no weights in the folder"):
        loaded(CausalConfig(config=LFM2, tokenizer=tokenizer, weights=str(tmp_path)))
    with pytest.raises(ShapeError, match=r"config\.json: cannot be read"):
        describe_causal(CausalConfig(model=str(tmp_path)))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ShapeError, match=r"config\.json: expected a JSON object"):
        describe_causal(CausalConfig(model=str(tmp_path)))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(ShapeError, match=r"model_type: the costs of 'mamba' are not known .* `fusionkit plan --meta`"):
        describe_causal(CausalConfig(model=str(tmp_path)))


def test_pretrained_weights_that_cannot_be_had_say_what_to_do(unreachable_hub: Path) -> None:
    with pytest.raises(BuildError) as caught:
        loaded(CausalConfig(model="Qwen/Qwen2-0.5B"))
    for part in (
        "'Qwen/Qwen2-0.5B'",
        str(unreachable_hub),
        "cannot be reached",
        "folder of a snapshot",
        "`weights: random`",
    ):
        assert part in str(caught.value)


# ----------------------------------------------------------------------------------------------------- decoding
@pytest.mark.parametrize("fields", [DECODERS["llama"], {**LFM2, "conv_L_cache": 4}], ids=["llama", "lfm2"])
@pytest.mark.parametrize("beams", [1, 3])
def test_padded_cached_decoding_equals_each_prompt_alone(fields: dict[str, Any], beams: int, tokenizer: str) -> None:
    """Left padding, KV and convolution caches and beams change nothing; prompts of one token included."""
    model = build(fields, tokenizer)
    options = {"max_new_tokens": 8, "do_sample": False, "num_beams": beams, "eos_token_id": None, "pad_token_id": 0}
    x_BTE = torch.randn(3, 10, 32, generator=torch.Generator().manual_seed(1))
    lengths = (10, 6, 1)
    mask_BT = torch.tensor([[0] * (10 - length) + [1] * length for length in lengths])
    together = model.generate(inputs_embeds=x_BTE, attention_mask=mask_BT, **options)
    for row, length in enumerate(lengths):
        alone = model.generate(inputs_embeds=x_BTE[row : row + 1, 10 - length :], use_cache=False, **options)
        assert torch.equal(together[row], alone[0])


def test_short_convolutions_are_causal(tokenizer: str) -> None:
    model, x_BTE = build(LFM2, tokenizer), torch.randn(1, 8, 32)
    changed = x_BTE.clone()
    changed[:, 5:] = 0

    def logits(x: Tensor) -> Tensor:
        with torch.no_grad():
            return model(inputs_embeds=x).logits[:, :5]

    assert torch.equal(logits(x_BTE), logits(changed))


def test_no_advice_about_gpu_kernels_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    record = logging.LogRecord("x", logging.WARNING, "", 0, "`causal_conv1d_fn` is falling back", (), None)
    drops = causal._GpuAdvice()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not drops.filter(record)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert drops.filter(record)


# -------------------------------------------------------------------------------------------- asking the library
def test_the_library_says_what_the_table_has(tokenizer: str, tmp_path: Path) -> None:
    build(DECODERS["qwen3"], tokenizer).config.save_pretrained(tmp_path)
    shipped = Path(causal.__file__).parents[2] / "assets" / "tiny_tokenizer"
    for file in shipped.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    answer = hub_facts.ask(str(tmp_path))
    assert answer["tokenizer_size"] == tokenizer_size("builtin:tiny")
    assert counts.read_decoder(answer["config"]) == counts.read_decoder(DECODERS["qwen3"])


def test_a_hub_id_that_cannot_be_asked_is_named() -> None:
    with (
        architectures.asking_libraries(),
        pytest.raises(BuildError, match="language model 'nobody/nothing' is neither in the local cache nor to be had"),
    ):
        describe_causal(CausalConfig(model="nobody/nothing"))
