"""FusionVLM and FusionProcessor: the module tree is the plan, rows share pictures, transformers idioms work."""

from __future__ import annotations

import pytest
import torch
from model_recipe import picture, recipe, sample
from transformers import AutoModelForImageTextToText, AutoProcessor

import fusionkit
from fusionkit.errors import CheckpointError, DataError, LockMismatchError, ShapeError, UsageError
from fusionkit.geometry import Size
from fusionkit.model.answer import answer
from fusionkit.model.checkpoint import load_checkpoint, save_checkpoint
from fusionkit.model.modeling import FusionVLM
from fusionkit.model.new_rows import ordinal_code, train_only_rows
from fusionkit.model.processing import IGNORED, FusionProcessor
from fusionkit.sample import Turn

TENSORS = ("input_ids", "attention_mask", "labels", "visual_index", "pixel_values_")


@pytest.fixture(scope="module")
def parts() -> tuple[FusionVLM, FusionProcessor]:
    torch.manual_seed(0)
    model = fusionkit.build(recipe()).eval()
    return model, FusionProcessor.from_plan(model.plan)


def tensors(batch: dict[str, object]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in batch.items() if name.startswith(TENSORS)}


def test_every_address_of_the_plan_is_a_module_with_the_planned_parameters(parts) -> None:
    model, _ = parts
    for node in model.plan.nodes:
        module = model.get_submodule(node.address)
        assert sum(parameter.numel() for parameter in module.parameters()) == node.params, node.address
    assert sum(parameter.numel() for parameter in model.parameters()) == model.plan.parameters


def test_rows_share_a_picture_that_is_encoded_once(parts) -> None:
    model, processor = parts
    batch = processor.batch([sample(1), sample(2)])
    assert batch["pixel_values_semantic"].shape == (2, 3, 24, 24)
    assert batch["input_ids"].shape[0] == 4
    together = model(**tensors(batch)).logits
    alone = model(**tensors(processor.batch([sample(2)]))).logits
    width = alone.shape[1]
    torch.testing.assert_close(together[2:, :width], alone, rtol=0, atol=2e-6)


def test_labels_cover_the_answers_and_nothing_else(parts) -> None:
    _, processor = parts
    batch = processor.batch([sample(1)])
    kept = batch["labels"] != IGNORED
    texts = [processor.tokenizer.decode(row[mask]) for row, mask in zip(batch["input_ids"], kept, strict=True)]
    size = Size(40, 30)
    first, second = (processor.parse(text, size) for text in texts)
    assert first.boxes
    assert first.boxes[0].iou(sample(1).turns[0].boxes[0]) > 0.8
    assert second.text == "2"
    assert all(
        row[mask][-1] == processor.tokenizer.eos_token_id for row, mask in zip(batch["input_ids"], kept, strict=True)
    )


def test_one_question_and_many_get_the_same_answer(parts) -> None:
    model, processor = parts
    long = Turn("how many red circles are there in the picture?", ())
    samples = [sample(1, Turn("count red", ())), sample(2, long), sample(3, Turn("box the blue square", ()))]
    together = [prediction.text for _, _, prediction in answer(model, processor, samples, max_new_tokens=8)]
    alone = [
        prediction.text for one in samples for _, _, prediction in answer(model, processor, [one], max_new_tokens=8)
    ]
    assert together == alone


def test_beams_and_sampling_expand_text_not_pictures(parts) -> None:
    model, processor = parts
    inputs = processor(
        images=[picture(1), picture(2)], text=[processor.prompt("count red"), processor.prompt("count blue")]
    )
    one = model.generate(**inputs, max_new_tokens=5, num_beams=3, do_sample=False)
    assert one.shape[0] == 2
    many = model.generate(**inputs, max_new_tokens=5, num_beams=3, num_return_sequences=2, do_sample=False)
    assert torch.equal(many[::2], one)


def test_text_alone_needs_no_picture(parts) -> None:
    model, processor = parts
    inputs = processor(text=[processor.prompt("hello", pictures=0)])
    assert "visual_index" not in inputs
    assert model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[0] == 1


def test_two_pictures_in_one_prompt(parts) -> None:
    model, processor = parts
    inputs = processor(images=[picture(1), picture(2)], text=[processor.prompt("which is red?", pictures=2)])
    assert len(inputs["visual_index"]) == 2 * model.plan.visual.tokens
    swapped = processor(images=[picture(2), picture(1)], text=[processor.prompt("which is red?", pictures=2)])
    assert not torch.equal(model(**inputs).logits, model(**swapped).logits)


def test_encoded_pictures_can_be_kept(parts) -> None:
    model, processor = parts
    inputs = processor(images=[picture(1)], text=[processor.prompt("count red")])
    visual = model.get_image_features(
        **{name: value for name, value in inputs.items() if name.startswith("pixel_values_")}
    )
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    assert torch.equal(model(**text, mm_encoder_outputs={"image": visual}).logits, model(**inputs).logits)


def test_streaming_layers_equals_holding_them(parts) -> None:
    model, processor = parts
    pixels = processor(images=[picture(1)], text=[processor.prompt("x")])["pixel_values_semantic"]
    with torch.no_grad():
        streamed = model.streams["semantic"](pixels, fusionkit.Runtime())
        held = model.streams["semantic"](pixels, fusionkit.Runtime(stream_layers=False))
        chunked = model.streams["semantic"](pixels.repeat(3, 1, 1, 1), fusionkit.Runtime(crop_chunk=2))
    torch.testing.assert_close(streamed.x_BND, held.x_BND, rtol=0, atol=2e-6)
    torch.testing.assert_close(chunked.x_BND[2:], streamed.x_BND, rtol=0, atol=2e-6)


def test_the_attention_backend_is_a_runtime_choice(parts) -> None:
    model, processor = parts
    inputs = processor(images=[picture(1)], text=[processor.prompt("x")])
    pixels = {name: value for name, value in inputs.items() if name.startswith("pixel_values_")}
    fast = model.get_image_features(**pixels).x_BND
    model.runtime = fusionkit.Runtime(attention="eager")
    slow = model.get_image_features(**pixels).x_BND
    with pytest.raises(UsageError, match="xformers"):
        model.runtime = fusionkit.Runtime(attention="xformers")
    assert model.runtime.attention == "eager"
    model.runtime = fusionkit.Runtime()
    torch.testing.assert_close(slow, fast, rtol=0, atol=2e-6)


def test_token_mismatch_is_told_before_the_language_model_runs(parts) -> None:
    model, processor = parts
    inputs = processor(images=[picture(1)], text=[processor.prompt("count red")])
    inputs["visual_index"] = inputs["visual_index"][:-1]
    with pytest.raises(ShapeError, match=r"the text has 9 image tokens, the pictures give 8 visual tokens"):
        model(**inputs)
    with pytest.raises(ShapeError, match="9 image tokens but no picture was given"):
        model(input_ids=inputs["input_ids"])


@pytest.mark.parametrize(
    ("text", "images", "message"),
    [
        (["no mark"], [picture()], "0 <image> marks, but 1 pictures"),
        (["<image><image>"], [picture()], "2 <image> marks, but 1 pictures"),
    ],
)
def test_marks_and_pictures_must_match(parts, text, images, message) -> None:
    with pytest.raises(UsageError, match=message):
        parts[1](images=images, text=text)


def test_a_question_cannot_smuggle_in_a_picture(parts) -> None:
    with pytest.raises(DataError, match=r"test:3: a question must not contain <image>"):
        parts[1].batch([sample(3, Turn("what is <image>?", ("x",)))])


def test_rows_longer_than_the_sequence_are_refused_not_cut(parts) -> None:
    with pytest.raises(DataError, match=r"test:4: \d+ tokens are more than sequence_length 128"):
        parts[1].batch([sample(4, Turn("red " * 200, ("x",)))])


def test_empty_question(parts) -> None:
    model, processor = parts
    with pytest.raises(DataError, match="the question is empty"):
        list(answer(model, processor, [sample(1, Turn("  ", ()))]))


def test_auto_classes_load_what_was_saved(parts, tmp_path) -> None:
    import fusionkit.auto  # noqa: F401

    model, processor = parts
    folder = save_checkpoint(tmp_path / "saved", model, processor)
    again = AutoModelForImageTextToText.from_pretrained(folder)
    reader = AutoProcessor.from_pretrained(folder)
    assert type(again) is FusionVLM
    inputs = processor(images=[picture(5)], text=[processor.prompt("count red")])
    same = reader(images=[picture(5)], text=[reader.prompt("count red")])
    assert all(torch.equal(inputs[name], same[name]) for name in inputs)
    assert torch.equal(again.eval()(**same).logits, model(**inputs).logits)
    messages = [
        {"role": "user", "content": [{"type": "image", "image": picture(5)}, {"type": "text", "text": "count red"}]}
    ]
    chat = reader.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)
    assert torch.equal(chat["input_ids"], inputs["input_ids"])


def test_the_order_of_steps_survives_a_file(tmp_path) -> None:
    """transformers sorts the keys of config.json; here the alphabetical order of steps is the wrong one."""
    fusion = {
        "z_align": {"type": "rope_cross_attention", "query": "semantic", "memory": "spatial", "heads": 2},
        "a_project": {"type": "mlp", "hidden": 32},
    }
    model = fusionkit.build(recipe(fusion=fusion))
    folder = save_checkpoint(tmp_path / "run", model, FusionProcessor.from_plan(model.plan))
    again, processor = load_checkpoint(folder)
    assert list(again.fusion) == ["z_align", "a_project"]
    assert processor.plan.visual == model.plan.visual


def test_saving_is_all_or_nothing(parts, tmp_path, monkeypatch) -> None:
    model, processor = parts
    folder = save_checkpoint(tmp_path / "run", model, processor)
    before = sorted(path.name for path in folder.iterdir())

    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FusionProcessor, "save_pretrained", full)
    with pytest.raises(CheckpointError, match=r"No space left on device .*unchanged"):
        save_checkpoint(folder, model, processor)
    assert sorted(path.name for path in folder.iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    load_checkpoint(folder)


def test_a_folder_that_cannot_be_written_is_told(parts, tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot save the checkpoint"):
        save_checkpoint(tmp_path / "file" / "run", *parts)


def test_checkpoint_faults_are_told(parts, tmp_path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint folder"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no checkpoint 'checkpoint:huge' is shipped"):
        load_checkpoint("checkpoint:huge")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"not a checkpoint, it has no config\.json"):
        load_checkpoint(tmp_path / "empty")
    folder = save_checkpoint(tmp_path / "run", *parts)
    other = fusionkit.load_recipe(recipe(sequence_length=100))
    with pytest.raises(LockMismatchError, match="sequence_length"):
        load_checkpoint(folder, expect=other)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(CheckpointError):
        load_checkpoint(folder)


def test_a_missing_tensor_is_an_error_not_a_warning(parts, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_checkpoint(tmp_path / "run", *parts)
    state = load_file(folder / "model.safetensors")
    state.pop("fusion.align.gate")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"fusion\.align\.gate is missing"):
        load_checkpoint(folder)


def test_meta_build_counts_and_reads_nothing() -> None:
    model = fusionkit.build(recipe(), device="meta")
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) == model.plan.parameters


def test_only_new_rows_train(parts) -> None:
    torch.manual_seed(0)
    model = fusionkit.build(recipe())
    processor = FusionProcessor.from_plan(model.plan)
    model.requires_grad_(False)
    new_ids = processor.tokenizer.convert_tokens_to_ids(list(model.plan.new_tokens))
    handles = train_only_rows(model.language_model, new_ids)
    table = model.get_input_embeddings().weight
    before = table.detach().clone()
    model(**tensors(processor.batch([sample(1)]))).loss.backward()
    torch.optim.AdamW([table], lr=0.1, weight_decay=0.0).step()
    changed = (table != before).any(dim=1)
    old = torch.ones(len(table), dtype=torch.bool)
    old[new_ids] = False
    assert not changed[old].any()
    assert changed[~old].any()
    for handle in handles:
        handle.remove()


def test_ordinal_rows_are_near_when_their_values_are() -> None:
    code = ordinal_code(100, 64)
    assert torch.allclose(code.square().mean(1), torch.ones(100), atol=0.05)
    distance = torch.cdist(code, code)
    assert (distance.diagonal(1) < distance.diagonal(10).min()).all()


def test_without_a_language_model_the_vision_side_still_works() -> None:
    vision = recipe(language_model=None, injectors=None, box_tokenizer=None)
    model = fusionkit.build({key: value for key, value in vision.items() if value is not None})
    tokens = model.get_image_features(
        pixel_values_semantic=torch.rand(2, 3, 24, 24), pixel_values_spatial=torch.rand(2, 3, 24, 24)
    )
    assert tokens.spec == model.plan.visual
    with pytest.raises(UsageError, match="no language_model"):
        model(input_ids=torch.zeros(1, 1, dtype=torch.long))
