"""Sharing a picture between the rows that ask about it gives the values and gradients of the plain pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from model_recipe import recipe, sample

import fusionkit
from fusionkit.blocks.objectives.answer_tokens import AnswerTokens
from fusionkit.blocks.objectives.specs import AnswerTokensConfig
from fusionkit.model.modeling import FusionVLM
from fusionkit.model.processing import FusionProcessor
from fusionkit.model.shared_prefix import find_prefix, forward_shared
from fusionkit.plugin import BlockSite
from fusionkit.train.stage_model import TEXT

LFM2 = {
    "type": "causal",
    "tokenizer": "builtin:tiny",
    "config": {
        "model_type": "lfm2",
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "layer_types": ["conv", "full_attention", "conv"],
        "block_auto_adjust_ff_dim": False,
        "vocab_size": 512,
        "pad_token_id": 0,
    },
}


def build(**changes: Any) -> tuple[FusionVLM, FusionProcessor]:
    torch.manual_seed(0)
    model = fusionkit.build(recipe(**changes)).train()
    return model, FusionProcessor.from_plan(model.plan)


def inputs(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name in TEXT or name.startswith("pixel_values_")}


@pytest.mark.parametrize("changes", [{}, {"language_model": LFM2}], ids=["token_shift", "short_convolutions"])
def test_losses_and_gradients_are_those_of_the_plain_pass(changes: dict[str, Any]) -> None:
    model, processor = build(**changes)
    batch = processor.batch([sample(1), sample(2), sample(3)])
    objective = AnswerTokens(AnswerTokensConfig(), BlockSite())
    found = []
    for forward in (lambda: model(**inputs(batch), use_cache=False), lambda: forward_shared(model, inputs(batch))):
        model.zero_grad()
        loss = objective(forward(), batch)["tokens"]
        loss.backward()
        found.append((loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    (plain, plain_grads), (shared, shared_grads) = found
    torch.testing.assert_close(shared, plain, rtol=1e-6, atol=0)
    assert plain_grads.keys() == shared_grads.keys()
    for name, grad in plain_grads.items():
        torch.testing.assert_close(shared_grads[name], grad, rtol=1e-4, atol=2e-6, msg=name)


def test_the_decoder_sees_each_picture_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = build()
    batch = processor.batch([sample(1), sample(2)])
    seen = []
    forward = model.language_model.forward
    monkeypatch.setattr(
        model.language_model,
        "forward",
        lambda **kwargs: seen.append(tuple(kwargs["inputs_embeds"].shape[:2])) or forward(**kwargs),
    )
    forward_shared(model, inputs(batch))
    rows, width = batch["input_ids"].shape
    length = int((batch["input_ids"][0] == model.config.image_token_id).nonzero()[-1]) + 1
    assert seen == [(2, length), (rows, width - length)]


def prefix_of(batch: dict[str, Any], model: FusionVLM) -> Any:
    return find_prefix(batch["input_ids"], batch["attention_mask"], batch["visual_index"], model.config.image_token_id)


def test_rows_of_one_picture_form_a_group() -> None:
    model, processor = build()
    prefix = prefix_of(processor.batch([sample(1), sample(2)]), model)
    assert prefix.group_B.tolist() == [0, 0, 1, 1]
    assert prefix.first_G.tolist() == [0, 2]


def test_rows_that_share_nothing_take_the_plain_pass() -> None:
    model, processor = build()
    single = processor.batch([sample(1), sample(2)], turns_per_sample=1)
    assert prefix_of(single, model) is None
    logits = forward_shared(model, inputs(single)).logits
    torch.testing.assert_close(logits, model(**inputs(single)).logits, rtol=0, atol=0)
    shared = processor.batch([sample(1), sample(2)])
    changed = shared["input_ids"].clone()
    changed[0, 0] = 5
    assert find_prefix(changed, shared["attention_mask"], shared["visual_index"], model.config.image_token_id) is None
    no_picture = torch.full_like(changed, 5)
    assert find_prefix(no_picture, shared["attention_mask"], torch.zeros(0), model.config.image_token_id) is None


def test_gradient_checkpointing_takes_the_plain_pass() -> None:
    model, processor = build()
    batch = processor.batch([sample(1)])
    model.language_model.model.gradient_checkpointing = True
    output = forward_shared(model, inputs(batch))
    assert output.past_key_values is None
    assert bool(output.logits[:, 0].any())  # logits inside the prefix were computed
