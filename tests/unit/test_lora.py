"""LoRA: only updates and new rows learn, adapters and merged models give the same logits, ties stay ties."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from model_recipe import decoder, picture, recipe, sample
from transformers import AutoModelForImageTextToText, Trainer, TrainingArguments

import fusionkit
import fusionkit.auto
from fusionkit.errors import BuildError, PlanError, UsageError
from fusionkit.model.checkpoint import load_checkpoint, save_checkpoint
from fusionkit.model.lora import add_lora, lora_config, merge_lora
from fusionkit.model.modeling import FusionVLM
from fusionkit.model.processing import FusionProcessor
from fusionkit.sample import Sample
from fusionkit.train.run import train

# PEFT asks transformers by a name that transformers is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}


def build(**fields: Any) -> tuple[FusionVLM, FusionProcessor]:
    torch.manual_seed(0)
    model = fusionkit.build(recipe(language_model=decoder(**fields))).eval()
    return model, FusionProcessor.from_plan(model.plan)


def inputs(processor: FusionProcessor) -> dict[str, Any]:
    return processor(images=[picture(1)], text=[processor.prompt("count red")])


def logits(model: Any, processor: FusionProcessor) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs(processor)).logits


class Samples(torch.utils.data.Dataset[Sample]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Sample:
        return sample(index)


def fine_tune(model: Any, processor: FusionProcessor, folder: Path) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=6,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=0.02,
        use_cpu=True,
        report_to=[],
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        logging_steps=1,
        save_steps=6,
        eval_strategy="no",
    )
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=Samples(),
        eval_dataset=Samples(),
        data_collator=processor.collate,
    )


# ----------------------------------------------------------------------------------------- PEFT, as its users know it
@pytest.mark.parametrize("ties", [TIED, UNTIED], ids=["tied", "untied"])
def test_the_trainer_fine_tunes_a_saved_model_with_lora(ties: dict[str, bool], tmp_path: Path) -> None:
    saved = save_checkpoint(tmp_path / "base", *build(**ties))
    model = AutoModelForImageTextToText.from_pretrained(saved)
    processor = FusionProcessor.from_pretrained(saved)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapted = peft.get_peft_model(model, lora_config(model, rank=4, new_rows=processor.new_token_ids))
    learning = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert learning
    assert all("language_model" in name for name in learning)
    assert any("trainable_tokens_delta" in name for name in learning)
    trainer = fine_tune(adapted, processor, tmp_path / "run")
    start = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < start - 0.1

    # The adapter alone is saved, and brings a fresh copy of the base to the same logits.
    adapted.eval()
    expected = logits(adapted, processor)
    adapted.save_pretrained(tmp_path / "adapter")
    assert not torch.equal(expected, logits(AutoModelForImageTextToText.from_pretrained(saved), processor))
    fresh = AutoModelForImageTextToText.from_pretrained(saved)
    again = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(again, processor), expected, rtol=0, atol=2e-6)
    size = sum(path.stat().st_size for path in (tmp_path / "adapter").glob("*.safetensors"))
    assert size < (saved / "model.safetensors").stat().st_size

    # Merged it is a plain fused model again: same names, ties kept, old rows untouched.
    merged = again.merge_and_unload()
    assert type(merged) is FusionVLM
    torch.testing.assert_close(logits(merged, processor), expected, rtol=0, atol=2e-5)
    after = merged.state_dict()
    assert after.keys() == before.keys()
    table = "language_model.model.embed_tokens.weight"
    old = [row for row in range(len(before[table])) if row not in processor.new_token_ids]
    assert torch.equal(after[table][old], before[table][old])
    assert not torch.equal(after[table], before[table])
    head, embedding = merged.get_output_embeddings(), merged.get_input_embeddings()
    assert (head.weight is embedding.weight) == ties["tie_word_embeddings"]
    again, _ = load_checkpoint(save_checkpoint(tmp_path / "merged", merged, processor))
    torch.testing.assert_close(logits(again, processor), expected, rtol=0, atol=2e-5)


def test_new_rows_of_an_embedding_that_looks_back_are_refused() -> None:
    model = fusionkit.build(recipe())
    processor = FusionProcessor.from_plan(model.plan)
    with pytest.raises(UsageError, match="PEFT cannot train rows of an embedding that looks back"):
        lora_config(model, new_rows=processor.new_token_ids)
    assert lora_config(model).trainable_token_indices is None


def test_targets_are_layers_of_the_decoder() -> None:
    model, _ = build()
    with pytest.raises(UsageError, match=r"LoRA targets qkv: .* it has down_proj, gate_proj, k_proj"):
        add_lora(model, rank=2, alpha=4, targets=["q_proj", "qkv"])
    add_lora(model, rank=2, alpha=4, targets=["q_proj"])
    updated = {name.split(".lora_")[0] for name, _ in model.named_parameters() if ".lora_" in name}
    assert updated == {f"language_model.model.layers.{layer}.self_attn.q_proj" for layer in (0, 1)}


def test_without_the_package_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = build()
    monkeypatch.setattr("fusionkit.model.lora.find_spec", lambda name: None)
    with pytest.raises(
        BuildError, match=r"package peft, which is not installed \(run: pip install 'fusionkit\[lora\]'\)"
    ):
        lora_config(model)


def test_the_trainer_predicts_logits_and_labels(tmp_path: Path) -> None:
    model, processor = build()
    seen: list[Any] = []
    trainer = fine_tune(model, processor, tmp_path / "run")
    trainer.compute_metrics = lambda found: seen.append(found) or {"rows": len(found.predictions)}
    assert trainer.evaluate()["eval_rows"] == 16
    assert seen[0].predictions.shape[:2] == seen[0].label_ids.shape
    assert seen[0].predictions.shape[2] == model.plan.embedding_rows


# ---------------------------------------------------------------------------------------------- in place, by a recipe
def test_updates_start_at_nothing_and_merge_exactly() -> None:
    model, processor = build()
    names = list(model.state_dict())
    before = logits(model, processor)
    add_lora(model, rank=2, alpha=4)
    assert torch.equal(logits(model, processor), before)
    for name, parameter in model.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    changed = logits(model, processor)
    assert not torch.allclose(changed, before, atol=1e-3)
    merge_lora(model)
    assert list(model.state_dict()) == names
    torch.testing.assert_close(logits(model, processor), changed, rtol=0, atol=2e-6)


def training(**changes: Any) -> dict[str, Any]:
    train: dict[str, Any] = {
        "global_batch_size": 2,
        "lora": {"rank": 2, "alpha": 4.0},
        "learning_rates": {"fusion": 0.01, "language_model": 0.01},
        "stages": {"joint": {"steps": 2, "trainable": ["fusion", "language_model"]}},
        "data": [{"type": "synthetic_scenes", "samples": 8}],
    }
    return recipe(language_model=decoder(tie_word_embeddings=True), sequence_length=256, train=train | changes)


def test_a_recipe_trains_updates_and_new_rows_and_keeps_their_sum(tmp_path: Path) -> None:
    asked = fusionkit.load_recipe(training())
    rows: list[Any] = []
    finished = train(asked, tmp_path / "run", on_stage=lambda _, audit: rows.extend(audit))
    learns = {row.address: row.parameters for row in rows if row.trainable}
    assert 0 < learns["language_model"] < sum(row.parameters for row in rows if row.address == "language_model")
    model, processor = load_checkpoint(finished.folder, expect=asked)
    torch.manual_seed(0)
    start = fusionkit.build(asked).state_dict()
    end = model.state_dict()
    assert end.keys() == start.keys()
    assert not torch.equal(
        end["language_model.model.layers.0.mlp.up_proj.weight"],
        start["language_model.model.layers.0.mlp.up_proj.weight"],
    )
    assert torch.equal(end["language_model.model.norm.weight"], start["language_model.model.norm.weight"])
    table = "language_model.model.embed_tokens.weight"
    changed = (end[table] != start[table]).any(dim=1).nonzero().flatten().tolist()
    assert changed
    assert set(changed) <= set(processor.new_token_ids)
    assert json.loads((finished.folder / "recipe.json").read_text())["train"]["lora"]["rank"] == 2


def test_lora_needs_a_decoder() -> None:
    without = {
        key: value for key, value in training().items() if key not in ("language_model", "injectors", "box_tokenizer")
    }
    without["train"] = training()["train"] | {
        "stages": {"one": {"trainable": ["fusion"]}},
        "learning_rates": {"fusion": 1e-3},
    }
    with pytest.raises(PlanError, match=r"train\.lora: the recipe has no language_model to update"):
        fusionkit.plan(without)


def test_quantised_weights_do_not_learn_by_themselves() -> None:
    asked = training(lora=None)
    asked["language_model"] |= {"quantize": "4bit"}
    with pytest.raises(
        PlanError, match=r"weights held in 4bit do not learn \(add `lora: \{rank: 16\}` under `train`\)"
    ):
        fusionkit.plan(asked)


# ------------------------------------------------------------------------------------------------------ few bits
def test_few_bits_without_bitsandbytes_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusionkit.blocks.language_models.quantized.find_spec", lambda name: None)
    asked = recipe(language_model=decoder() | {"quantize": "4bit"})
    assert fusionkit.plan(asked).parameters > 0
    with pytest.raises(BuildError, match=r"language_model: quantize: 4bit needs the package bitsandbytes"):
        fusionkit.build(asked)


needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


@needs_bitsandbytes
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_decoder_in_few_bits_answers_saves_and_loads(bits: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    asked = recipe(language_model=decoder(hidden_size=64, intermediate_size=128) | {"quantize": bits})
    model = fusionkit.build(asked).eval()
    processor = FusionProcessor.from_plan(model.plan)
    names = [type(layer).__name__ for layer in model.language_model.model.layers[0].modules()]
    assert sum(name in ("FourBitLinear", "EightBitLinear") for name in names) == 7
    assert type(model.get_output_embeddings()) is torch.nn.Linear
    expected = logits(model, processor)
    folder = save_checkpoint(tmp_path / "saved", model, processor)
    again, reader = load_checkpoint(folder)
    kinds = [type(layer).__name__ for layer in again.language_model.model.layers[0].modules()]
    assert kinds == names
    assert again.language_model.model.norm.weight.dtype == torch.bfloat16
    torch.testing.assert_close(logits(again, reader), expected, rtol=0, atol=0.02)
    state = model.state_dict()
    again.load_state_dict(state)
    for name, value in again.state_dict().items():  # block scales are quantised too, so not to the bit
        torch.testing.assert_close(value, state[name], rtol=0, atol=1e-3, msg=name)


@needs_bitsandbytes
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_peft_updates_layers_in_few_bits(bits: str) -> None:
    model = fusionkit.build(recipe(language_model=decoder(hidden_size=64) | {"quantize": bits}))
    processor = FusionProcessor.from_plan(model.plan)
    adapted = peft.get_peft_model(model, lora_config(model, rank=2, new_rows=processor.new_token_ids))
    adapted(**processor.collate([sample(1)])).loss.backward()
    learning = {name: parameter.grad for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert any(".lora_B" in name for name in learning)
    assert all(grad is not None and torch.isfinite(grad).all() for grad in learning.values())
    layer = model.language_model.model.layers[0].mlp.up_proj
    assert type(layer).__module__ == "peft.tuners.lora.bnb"
    adapted.eval()
    before = logits(adapted, processor)
    merge_lora(model)
    assert type(model.language_model.model.layers[0].mlp.up_proj) is torch.nn.Linear
    torch.testing.assert_close(logits(model, processor), before, rtol=0, atol=0.02)


@needs_bitsandbytes
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_lora_on_few_bits_trains_and_merges(bits: str, tmp_path: Path) -> None:
    asked = training()
    asked["language_model"] |= {"quantize": bits}
    finished = train(fusionkit.load_recipe(asked), tmp_path / "run")
    model, processor = load_checkpoint(finished.folder)
    assert torch.isfinite(logits(model, processor)).all()
    torch.manual_seed(0)
    start = fusionkit.build(asked).state_dict()["language_model.model.layers.0.mlp.up_proj.weight"]
    assert not torch.equal(model.state_dict()["language_model.model.layers.0.mlp.up_proj.weight"], start)
