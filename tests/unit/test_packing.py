"""Packed rows give the losses and gradients of the same samples in rows of their own."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import fusionkit
from fusionkit.blocks.objectives.answer_tokens import AnswerTokens
from fusionkit.blocks.objectives.specs import AnswerTokensConfig
from fusionkit.data.collate import Collate
from fusionkit.data.packing import Packing
from fusionkit.errors import PlanError, UsageError
from fusionkit.geometry import Box, Size
from fusionkit.model.modeling import FusionVLM
from fusionkit.model.packable import require_packable
from fusionkit.model.processing import FusionProcessor
from fusionkit.ops.packing import Packed
from fusionkit.plugin import BlockSite
from fusionkit.sample import Provenance, Sample, Turn
from fusionkit.train.stage_model import StageModel

sys.path.insert(0, str(Path(__file__).parent))
from model_recipe import decoder, picture, recipe, sample

INJECTORS = {
    "visual": {"type": "replace"},
    "deep": {"type": "deepstack", "layers": [1, 2]},
    "look": {"type": "gated_cross_attention", "layers": [1, 2], "heads": 2, "gate_init": 0.5},
}
KINDS: dict[str, dict[str, Any]] = {
    "token_shift": {},
    "llama": {"language_model": decoder("llama", tie_word_embeddings=True)},
    "qwen2": {"language_model": decoder("qwen2")},
    "qwen3": {"language_model": decoder("qwen3", head_dim=12)},
    "lfm2": {
        "language_model": decoder("lfm2", layer_types=["full_attention"] * 2, block_auto_adjust_ff_dim=False),
    },
    "inside": {"injectors": INJECTORS},
    "inside_added": {"injectors": {**INJECTORS, "visual": {"type": "add"}}, "language_model": decoder("qwen2")},
}


def build(*, exact: bool = True, **changes: Any) -> tuple[FusionVLM, FusionProcessor]:
    """A model in fp64; with `exact` its decoder's norms too, which transformers computes in fp32 whatever it is given."""
    torch.manual_seed(0)
    model = fusionkit.build(recipe(**changes)).double().train()
    for module in model.modules():
        if exact and type(module).__name__.endswith("RMSNorm"):
            module.forward = partial(rms_norm, module)
    return model, FusionProcessor.from_plan(model.plan)


def rms_norm(norm: Any, x: torch.Tensor) -> torch.Tensor:
    return norm.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.variance_epsilon)


def text(number: int, *questions: str) -> Sample:
    turns = tuple(Turn(question, ("red " * (1 + place),)) for place, question in enumerate(questions))
    return Sample(None, None, turns, Provenance("text", number))


def several(number: int) -> Sample:
    shown = [picture(number, (40, 30)), picture(number + 50, (30, 30))]
    turns = (Turn("count red", ("3",), "count"), Turn("box the red circle", (Box(4, 3, 20, 21),), "box"))
    return Sample(lambda: shown[0], Size(40, 30), turns, Provenance("two", number), more=(lambda: shown[1],))


def mixture() -> list[Sample]:
    return [
        sample(1),
        text(2, "count red", "count the red circle"),
        several(3),
        text(4, "what colour is it"),
        sample(5, Turn("count red", ("2",), "count")),
        text(6, "count"),
    ]


def losses_and_gradients(model: FusionVLM, batch: dict[str, Any]) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    stage = StageModel(model, {"answers": AnswerTokens(AnswerTokensConfig(), BlockSite())}, uniform=True)
    total = torch.stack(list(stage(batch).values())).sum()
    total.backward()
    return float(total.detach()), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def require_same(model: FusionVLM, batch: dict[str, Any], packed: dict[str, Any], share: float) -> None:
    """Loss and gradient of every parameter, to this share of its norm."""
    plain, plain_grads = losses_and_gradients(model, batch)
    found, grads = losses_and_gradients(model, packed)
    assert found == pytest.approx(plain, rel=share, abs=0)
    assert grads.keys() == plain_grads.keys()
    for name, grad in plain_grads.items():
        assert float((grads[name] - grad).norm()) <= share * float(grad.norm()) + 1e-18, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limit", [128, 60])
def test_losses_and_gradients_are_those_of_rows_of_their_own(kind: str, limit: int) -> None:
    model, processor = build(**KINDS[kind])
    batch = Collate(processor, None, double=True)(mixture())
    packing = Packing.of(processor)
    packed = Packing(limit, packing.width, packing.image_id, packing.padding_id)(batch)
    assert packed["input_ids"].numel() < batch["input_ids"].numel()
    assert packed["input_ids"].shape[1] <= limit
    require_same(model, batch, packed, 1e-12)


def test_with_the_norms_of_the_library_single_questions_are_as_exact() -> None:
    """Nothing is summed in fp32 then; with shared pictures the gradients of several questions meet in those norms."""
    model, processor = build(exact=False)
    singles = [sample(1, Turn("count red", ("2",), "count")), text(2, "count"), text(4, "what colour is it")]
    batch = Collate(processor, None, double=True)(singles)
    require_same(model, batch, Packing.of(processor)(batch), 1e-12)
    batch = Collate(processor, None, double=True)(mixture())
    require_same(model, batch, Packing.of(processor)(batch), 1e-6)


def test_checkpointed_activations_change_nothing() -> None:
    model, processor = build(language_model=decoder("qwen2"))
    batch = Packing.of(processor)(Collate(processor, None, double=True)(mixture()))
    found, grads = losses_and_gradients(model, batch)
    model.language_model.activation_checkpointing_enable({"use_reentrant": False})
    again, same = losses_and_gradients(model, batch)
    assert again == found
    for name, grad in grads.items():
        torch.testing.assert_close(same[name], grad, rtol=1e-12, atol=1e-15, msg=name)


def test_eager_attention_takes_the_mask_as_numbers() -> None:
    model, processor = build(language_model=decoder("qwen2"))
    batch = Packing.of(processor)(Collate(processor, None, double=True)(mixture()))
    with torch.no_grad():
        inputs = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor) and name != "labels"}
        expected = model(**inputs, use_cache=False).logits
        model.language_model.set_attn_implementation("eager")
        found = model(**inputs, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)  # its softmax is computed in fp32
    config = type("Config", (), {"_attn_implementation": "flash_attention_2"})()
    with pytest.raises(UsageError, match="packed rows need the attention sdpa or eager, this decoder has 'flash_att"):
        Packed.of(batch["packed"]).mask(config, torch.float32)


def test_tokens_know_their_path() -> None:
    sample_T = [0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2, -1]
    turn_T = [0, 0, 0, 0, 0, 1, 1, 2, 2, 0, 0, -1]
    packed = Packed(torch.tensor([sample_T]), torch.tensor([turn_T]))
    assert packed.positions()[0, :-1].tolist() == [0, 1, 2, 0, 1, 2, 3, 2, 3, 0, 1]
    assert packed.previous()[0, :-1].tolist() == [-1, 0, 1, -1, 3, 4, 5, 4, 7, -1, 9]
    assert packed.ends()[0].tolist() == [3] * 3 + [9] * 6 + [11] * 2 + [12]
    seen = [[key for key in range(12) if packed.allowed()[0, 0, query, key]] for query in range(12)]
    assert seen[5] == [3, 4, 5]
    assert seen[8] == [3, 4, 7, 8]
    assert seen[10] == [9, 10]
    assert seen[11] == [11]


def test_what_is_in_a_packed_batch() -> None:
    model, processor = build()
    batch = processor.batch(mixture())
    packed = Packing.of(processor)(batch)
    rows, tokens = packed["input_ids"].shape
    assert "turns" not in packed
    assert packed["packed"].shape == (rows, tokens, 2)
    for name in ("attention_mask", "labels"):
        assert packed[name].shape == (rows, tokens)
    assert int((packed["labels"] != -100).sum()) == int((batch["labels"] != -100).sum())
    assert packed["samples"] == batch["samples"]
    # Four pictures: that of sample 1 once for its two questions, the two of sample 3 likewise.
    assert int((packed["input_ids"] == model.config.image_token_id).sum()) == 4 * model.plan.visual.tokens
    assert sorted(packed["visual_index"].tolist()) == list(range(4 * model.plan.visual.tokens))


def test_questions_that_do_not_fit_with_the_others_stand_with_the_picture_again() -> None:
    model, processor = build()
    turns = [Turn(question, ("red",)) for question in ("count", "count red " * 12, "count blue")]
    batch = processor.batch([sample(1, *turns)])
    lengths = batch["attention_mask"].sum(1).tolist()
    limit = max(lengths)
    packed = Packing(limit, 24, processor.image_token_id, 0)(batch)
    assert packed["input_ids"].shape[1] <= limit
    tokens = model.plan.visual.tokens
    assert int((packed["input_ids"] == model.config.image_token_id).sum()) in (2 * tokens, 3 * tokens)
    exact, _ = build()
    plain, _ = losses_and_gradients(exact, {**batch, **{k: v.double() for k, v in batch.items() if k[:5] == "pixel"}})
    found, _ = losses_and_gradients(exact, {**packed, **{k: v.double() for k, v in packed.items() if k[:5] == "pixel"}})
    assert found == pytest.approx(plain, rel=1e-12)


# ------------------------------------------------------------------------------------------------- what is refused
def packing_recipe(**changes: Any) -> dict[str, Any]:
    stages = {"answers": {"steps": 1, "trainable": ["fusion"]}}
    data = [{"type": "synthetic_scenes"}]
    train = {"packing": True, "learning_rates": {"fusion": 1e-3}, "stages": stages, "data": data}
    return recipe(train=train, **changes)


def test_convolutions_are_refused_when_planned() -> None:
    convolving = decoder("lfm2", layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False)
    with pytest.raises(PlanError) as caught:
        fusionkit.plan(packing_recipe(language_model=convolving))
    assert (
        "train.packing: language_model lfm2 has short convolutions in 1 of its 2 blocks, which carry from one sample of "
        "a row into the next" in str(caught.value)
    )
    assert "use a decoder with attention alone" in str(caught.value)
    fusionkit.plan(packing_recipe())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_keeps_samples_apart(kind: str) -> None:
    model, _ = build(**KINDS[kind])
    state = torch.get_rng_state()
    require_packable(model, 128)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_a_decoder_that_carries_something_across_is_found_out() -> None:
    convolving = decoder("lfm2", layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False)
    model, _ = build(language_model=convolving)
    with pytest.raises(
        UsageError, match=r"what stands before a sample in its row changes its logits by .*leave `train"
    ):
        require_packable(model, 128)


def test_an_injector_that_carries_something_across_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = build(injectors=INJECTORS)
    monkeypatch.setattr(Packed, "ends", lambda packed: torch.full_like(packed.sample_BT, 2**40))
    with pytest.raises(UsageError, match="the language model or an injector carries something across"):
        require_packable(model, 128)


def test_positions_that_go_on_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # A rotary decoder sees differences alone: a sample that only began later would be the same to it.
    model, _ = build(language_model=decoder("llama"))
    monkeypatch.setattr(Packed, "positions", lambda packed: torch.arange(packed.sample_BT.shape[1])[None] * 50)
    with pytest.raises(UsageError, match="does not count positions from the sample's start"):
        require_packable(model, 128)


def test_a_window_narrower_than_the_sequence_is_refused() -> None:
    model, _ = build(language_model=decoder("qwen2"))
    model.language_model.config.sliding_window = 64
    with pytest.raises(UsageError, match="sees 64 tokens back in some layers, fewer than sequence_length 128"):
        require_packable(model, 128)
    require_packable(model, 64)
