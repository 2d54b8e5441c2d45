"""What transformers' users do with a model: batches, beams, caches, chats, dtypes, devices, checkpointing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from model_recipe import decoder, picture, recipe, sample
from torch import Tensor
from transformers import AutoModelForImageTextToText

import fusionkit
import fusionkit.auto
from fusionkit.errors import UsageError
from fusionkit.geometry import Box, Size
from fusionkit.model.checkpoint import save_checkpoint
from fusionkit.model.modeling import FusionVLM
from fusionkit.model.processing import FusionProcessor

TILES = {"type": "overlap_tiles", "size": 24, "patch": 4, "max_crops": 4, "margin_patches": [2, 2]}
LFM2 = {
    "layer_types": ["conv", "full_attention"],
    "block_auto_adjust_ff_dim": False,
    "num_key_value_heads": 2,
}
DECODERS: dict[str, dict[str, Any]] = {
    "qwen2": decoder("qwen2", num_key_value_heads=1),
    "qwen3": decoder("qwen3", head_dim=8, tie_word_embeddings=True),
    "llama": decoder("llama", num_key_value_heads=1),
    "smollm": decoder("llama", hidden_size=36, num_attention_heads=3, num_key_value_heads=3, tie_word_embeddings=True),
    "lfm2": decoder("lfm2", **LFM2),
    "gemma3": decoder("gemma3_text", head_dim=12, sliding_window=8, tie_word_embeddings=True),
    "smollm3": decoder("smollm3", num_key_value_heads=1),
}
EVERY_DECODER = pytest.mark.parametrize("language_model", DECODERS.values(), ids=DECODERS)


def build(dtype: torch.dtype | None = None, **changes: Any) -> tuple[FusionVLM, FusionProcessor]:
    """A model whose logits are told apart by what it sees: small random weights would answer the same to everything."""
    torch.manual_seed(0)
    changes = {"cropper": TILES, "sequence_length": 256, "language_model": DECODERS["qwen2"]} | changes
    model = fusionkit.build(recipe(**changes), dtype=dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "skew" not in name:
                parameter.normal_(std=0.15)
    return model, FusionProcessor.from_plan(model.plan)


@pytest.fixture(scope="module")
def parts() -> tuple[FusionVLM, FusionProcessor]:
    return build()


ROWS: list[tuple[str, list[tuple[int, int]]]] = [
    ("count red", [(40, 30)]),
    ("hello", []),
    ("which of these two is larger, and why?", [(90, 20), (24, 24)]),
    ("box the blue square", [(20, 70)]),
]
"""A question and the sizes of its pictures: one tile to five, no picture, two pictures."""


def inputs(processor: FusionProcessor, rows: list[tuple[str, list[tuple[int, int]]]]) -> Any:
    images = [picture(sum(size), size) for _, sizes in rows for size in sizes]
    text = [processor.prompt(question, pictures=len(sizes)) for question, sizes in rows]
    return processor(images=images or None, text=text)


def answers(model: Any, batch: Any, **options: Any) -> Tensor:
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None} | options
    return model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]


# ---------------------------------------------------------------------------------------------------- batches
@EVERY_DECODER
@pytest.mark.parametrize("beams", [1, 3])
def test_one_row_and_many_answer_the_same(language_model: dict[str, Any], beams: int) -> None:
    """Pictures of other sizes, rows without any, rows with two, padding on the left: nothing leaks between rows."""
    model, processor = build(language_model=language_model)
    batch = inputs(processor, ROWS)
    assert len(set(batch["crop_counts"].tolist())) > 1
    assert batch["attention_mask"].min() == 0
    together = answers(model, batch, num_beams=beams)
    assert len({tuple(row) for row in together.tolist()}) > 1
    for number, row in enumerate(ROWS):
        alone = answers(model, inputs(processor, [row]), num_beams=beams)
        assert torch.equal(alone[0], together[number]), row[0]


@EVERY_DECODER
def test_the_cache_changes_no_answer(language_model: dict[str, Any]) -> None:
    model, processor = build(language_model=language_model)
    batch = inputs(processor, ROWS)
    assert torch.equal(answers(model, batch), answers(model, batch, use_cache=False))


def test_logits_of_a_row_do_not_depend_on_its_padding(parts: Any) -> None:
    model, processor = parts
    batch = inputs(processor, ROWS)
    together = model(**batch).logits
    for number, row in enumerate(ROWS):
        single = inputs(processor, [row])
        width = single["input_ids"].shape[1]
        torch.testing.assert_close(together[number, -width:], model(**single).logits[0], rtol=0, atol=2e-5)


def test_encoded_pictures_serve_beams_and_many_calls(parts: Any) -> None:
    model, processor = parts
    batch = inputs(processor, ROWS)
    pixels = {name: value for name, value in batch.items() if name.startswith(("pixel_values_", "coverage_"))}
    visual = model.get_image_features(**pixels)
    kept = {name: batch[name] for name in ("input_ids", "attention_mask", "visual_index")}
    kept["mm_encoder_outputs"] = {"image": visual}
    assert torch.equal(answers(model, kept, num_beams=2), answers(model, batch, num_beams=2))
    assert torch.equal(model(**kept).logits, model(**batch).logits)


def test_pictures_are_encoded_once_for_all_beams(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = parts
    crops: list[int] = []
    encode = model.streams["semantic"].forward
    monkeypatch.setattr(
        model.streams["semantic"], "forward", lambda pixels, *rest: crops.append(len(pixels)) or encode(pixels, *rest)
    )
    batch = inputs(processor, ROWS)
    answers(model, batch, num_beams=4, num_return_sequences=2)
    assert crops == [int(batch["crop_counts"].sum())]


def test_padding_crops_change_nothing_to_the_bit(parts: Any) -> None:
    """Frameworks with a fixed number of crops per picture pad; here there are no such crops, and leaving them out is exact."""
    model, processor = parts
    batch = inputs(processor, ROWS)
    pixels = {name: value for name, value in batch.items() if name.startswith("pixel_values_")}
    crops = len(pixels["pixel_values_semantic"])
    padded = {name: torch.cat([value, torch.zeros_like(value)]) for name, value in pixels.items()}
    with torch.no_grad():
        plain, more = model.get_image_features(**pixels).x_BND, model.get_image_features(**padded).x_BND
    assert len(more) == 2 * crops
    assert torch.equal(more[:crops], plain)


# ------------------------------------------------------------------------------------------------------ chats
def turns(*contents: Any) -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    return [{"role": roles[number % 2], "content": content} for number, content in enumerate(contents)]


def shown(text: str, *images: Any) -> list[dict[str, Any]]:
    return [*({"type": "image", "image": image} for image in images), {"type": "text", "text": text}]


def test_a_chat_of_several_turns_and_pictures(parts: Any) -> None:
    model, processor = parts
    first, second = picture(1), picture(2, (60, 24))
    chat = turns(shown("count red", first), "2", shown("and here?", second))
    batch = processor.apply_chat_template(chat, tokenize=True, add_generation_prompt=True, return_dict=True)
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert text.count("<image>") == 2
    assert text.index("count red") < text.index("2") < text.index("and here?")
    plain = processor(images=[first, second], text=[text])
    assert batch.keys() == plain.keys()
    assert all(torch.equal(batch[name], plain[name]) for name in plain)
    assert answers(model, batch).shape == (1, 6)
    # What was said before changes what comes: the template passes on every turn.
    other = processor.apply_chat_template(turns(*shown_again(first, second)), tokenize=True, add_generation_prompt=True)
    assert not torch.equal(model(**other).logits[:, -1], model(**batch).logits[:, -1])


def shown_again(first: Any, second: Any) -> tuple[Any, ...]:
    return shown("count red", first), "9", shown("and here?", second)


def test_chats_of_a_batch_may_differ_in_all(parts: Any) -> None:
    model, processor = parts
    chats = [
        turns("hello"),
        turns(shown("count red", picture(1)), "2", "sure?"),
        turns(shown("x", picture(2), picture(3))),
    ]
    options = {"tokenize": True, "add_generation_prompt": True}
    together = answers(model, processor.apply_chat_template(chats, **options))
    for row, chat in zip(together, chats, strict=True):
        assert torch.equal(answers(model, processor.apply_chat_template(chat, **options))[0], row)


def test_pictures_of_a_chat_may_be_files(parts: Any, tmp_path: Path) -> None:
    _, processor = parts
    picture(1).save(tmp_path / "photo.png")
    options = {"tokenize": True, "add_generation_prompt": True}
    wanted = processor.apply_chat_template(turns(shown("x", picture(1))), **options)
    for part in (
        {"type": "image", "path": str(tmp_path / "photo.png")},
        {"type": "image", "image": tmp_path / "photo.png"},
    ):
        found = processor.apply_chat_template(turns([part, {"type": "text", "text": "x"}]), **options)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    for part in (
        {"type": "image", "url": "https://example.org/a.png"},
        {"type": "image", "image": "https://example.org/a.png"},
    ):
        with pytest.raises(UsageError, match="download it and give its path"):
            processor.apply_chat_template(turns([part]), **options)
    with pytest.raises(UsageError, match="the text has 1 <image> marks, but 0 pictures were given"):
        processor.apply_chat_template(turns([{"type": "image"}]), **options)


def test_words_are_decoded_as_transformers_does(parts: Any) -> None:
    _, processor = parts
    ids = processor.tokenizer("count red")["input_ids"]
    padded = torch.tensor([[*ids, processor.tokenizer.eos_token_id]])
    assert processor.batch_decode(padded, skip_special_tokens=True) == ["count red"]
    assert processor.decode(padded[0], skip_special_tokens=True) == "count red"


def test_words_for_boxes_are_no_special_tokens_to_skip(parts: Any) -> None:
    _, processor = parts
    box = processor.answer_text((Box(4, 3, 20, 21),), Size(40, 30))
    ids = torch.tensor([[*processor.tokenizer(f"red {box}")["input_ids"], processor.tokenizer.eos_token_id]])
    (text,) = processor.batch_decode(ids, skip_special_tokens=True)
    assert box in text
    assert processor.tokenizer.eos_token not in text
    assert processor.parse(text, Size(40, 30)).boxes == processor.parse(box, Size(40, 30)).boxes != ()
    assert processor.tokenizer.eos_token in processor.decode(ids[0])


# ------------------------------------------------------------------------------------- memory, dtypes and devices
@pytest.mark.parametrize("language_model", [DECODERS["qwen2"], DECODERS["lfm2"]], ids=["qwen2", "lfm2"])
def test_activation_checkpointing_gives_the_same_gradients(language_model: dict[str, Any]) -> None:
    model, processor = build(language_model=language_model)
    model.train()
    batch = processor.collate([sample(1), sample(2, size=(90, 20))])
    found = []
    for enable in (False, True):
        if enable:
            model.activation_checkpointing_enable()
            assert model.is_activation_checkpointing
        model.zero_grad()
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        found.append({"loss": loss.detach()} | {n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    plain, saved = found
    assert plain.keys() == saved.keys()
    assert any(name.startswith("streams.") for name in plain)
    for name, value in plain.items():
        torch.testing.assert_close(saved[name], value, rtol=1e-5, atol=1e-7, msg=name)


def kept_full(model: FusionVLM) -> dict[str, torch.dtype]:
    return {name: value.dtype for name, value in model.named_parameters() if "skew" in name}


def test_bf16_keeps_skews_and_answers_alike(tmp_path: Path) -> None:
    full, processor = build()
    half, _ = build(torch.bfloat16)
    half.load_state_dict(full.state_dict())
    assert half.language_model.dtype == torch.bfloat16
    assert set(kept_full(half).values()) == {torch.float32}
    assert half.language_model.model.rotary_emb.inv_freq.dtype == torch.float32
    batch = inputs(processor, ROWS)
    exact, rounded = full(**batch).logits, half(**batch).logits
    assert rounded.dtype == torch.bfloat16
    kept = batch["attention_mask"].bool()
    distance = (rounded.float() - exact)[kept].norm() / exact[kept].norm()
    assert distance < 0.05
    assert answers(half, batch).shape == (len(ROWS), 6)

    save_checkpoint(tmp_path / "half", half, processor)
    for options in ({}, {"dtype": torch.bfloat16}):
        again = AutoModelForImageTextToText.from_pretrained(tmp_path / "half", **options).eval()
        assert again.language_model.dtype == torch.bfloat16
        assert kept_full(again) == kept_full(half)
        assert torch.equal(again(**batch).logits, rounded)
    save_checkpoint(tmp_path / "full", full, processor)
    asked = AutoModelForImageTextToText.from_pretrained(tmp_path / "full", dtype=torch.bfloat16).eval()
    assert kept_full(asked) == kept_full(half)
    assert torch.equal(asked(**batch).logits, rounded)


@pytest.mark.parametrize(
    "devices",
    [
        "auto",
        {"": "cpu"},
        {"streams": "cpu", "fusion": "cpu", "injectors": "cpu", "language_model": "disk"},
    ],
    ids=["auto", "cpu", "decoder on disk"],
)
def test_device_maps(parts: Any, devices: Any, tmp_path: Path) -> None:
    model, processor = parts
    folder = save_checkpoint(tmp_path / "run", model, processor)
    placed = AutoModelForImageTextToText.from_pretrained(
        folder, device_map=devices, offload_folder=str(tmp_path / "offload")
    ).eval()
    batch = inputs(processor, ROWS)
    with torch.no_grad():
        torch.testing.assert_close(placed(**batch).logits, model(**batch).logits, rtol=0, atol=2e-6)
    assert torch.equal(answers(placed, batch), answers(model, batch))


def test_streams_that_cannot_be_offloaded_say_so(parts: Any, tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "run", *parts)
    with pytest.raises(UsageError, match=r"device_map: streams cannot be offloaded; keep them on a device"):
        AutoModelForImageTextToText.from_pretrained(
            folder, device_map={"": "disk"}, offload_folder=str(tmp_path / "offload")
        )


def test_a_decoder_is_built_in_its_dtype_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[torch.dtype] = set()
    cast = torch.nn.Module.to

    def watch(module: Any, *args: Any, **kwargs: Any) -> Any:
        seen.update(parameter.dtype for parameter in getattr(module, "language_model", module).parameters())
        return cast(module, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "to", watch)
    fusionkit.build(recipe(language_model=DECODERS["qwen2"]), dtype=torch.bfloat16)
    assert seen == {torch.bfloat16}


PEAK = """
import resource, sys
import torch, fusionkit, fusionkit.model.build
sys.path.insert(0, {here!r})
from model_recipe import decoder, recipe
big = decoder(hidden_size=1024, intermediate_size=4096, num_hidden_layers=2, num_attention_heads=16, vocab_size=32000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = fusionkit.build(recipe(language_model=big), dtype=torch.bfloat16)
peak = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
print(peak / sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()))
"""


def test_building_in_bf16_holds_no_second_copy() -> None:
    code = PEAK.format(here=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout.split()[-1]) < 1.5, "peak memory over the weights in bf16"
