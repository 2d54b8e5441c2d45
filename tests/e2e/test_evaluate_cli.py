"""`fusionkit evaluate`: tables that agree, ablation of a stream, and a transformers model on the same questions."""

from __future__ import annotations

import csv
import json
from importlib import resources
from pathlib import Path

import pytest

from fusionkit.evaluate.run import without_stream
from fusionkit.evaluate.tables import as_latex, as_markdown
from fusionkit.model.checkpoint import load_checkpoint


def test_one_table_in_four_formats_and_a_line_per_answer(fusionkit, checkpoint: Path, tmp_path: Path) -> None:
    done = fusionkit("evaluate", checkpoint, "-o", tmp_path / "scores", "--json")
    assert done.code == 0, done.err
    rows = json.loads(done.out)
    folder = tmp_path / "scores"
    assert json.loads((folder / "scores.json").read_text())["scores"] == rows
    with (folder / "scores.csv").open() as file:
        kept = list(csv.DictReader(file))
    assert [row["metric"] for row in kept] == [row["metric"] for row in rows]
    assert [row["value"] or None for row in kept] == [
        None if row["value"] is None else str(row["value"]) for row in rows
    ]
    assert (folder / "scores.md").read_text().count("\n") == len(rows) + 2
    assert (folder / "scores.tex").read_text().count(r"\\") == len(rows) + 1
    answers = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    scored = [answer["scores"]["box_accuracy"] for answer in answers if answer["kind"] == "box"]
    whole = next(row for row in rows if row["metric"] == "box_accuracy" and not row.get("questions"))
    assert len(scored) == whole["count"]
    assert sum(scored) / len(scored) == pytest.approx(whole["value"])


def test_dropping_a_stream_is_paired_with_the_whole_model(fusionkit, checkpoint: Path) -> None:
    done = fusionkit("evaluate", checkpoint, "--drop", "spatial", "--drop", "semantic", "--json")
    assert done.code == 0, done.err
    rows = [row for row in json.loads(done.out) if row["metric"] == "count_accuracy"]
    assert [row["without"] for row in rows] == ["", "spatial", "semantic"]
    for row in rows[1:]:
        assert row["change"] == pytest.approx(row["value"] - rows[0]["value"])
        assert row["change_low"] <= row["change"] <= row["change_high"]
    assert "change" not in rows[0]


def test_a_dropped_stream_sees_nothing_and_comes_back(checkpoint: Path) -> None:
    import torch

    model, _ = load_checkpoint(checkpoint)
    pixels = {name: torch.randn(2, 3, *stream.info.input_size) for name, stream in model.plan.streams.items()}
    other = {**pixels, "spatial": torch.randn_like(pixels["spatial"])}
    fused = [model.fuse(model.encode_streams(given)).x_BND for given in (pixels, other)]
    assert not torch.equal(*fused)
    with without_stream(model, "spatial"):
        dropped = [model.fuse(model.encode_streams(given)).x_BND for given in (pixels, other)]
    assert torch.equal(*dropped)
    assert torch.equal(model.fuse(model.encode_streams(pixels)).x_BND, fused[0])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give either a CHECKPOINT or --model"),
        (("x", "--model", "y"), "give either a CHECKPOINT or --model"),
        (("--model", "y"), "--model needs --recipe"),
        (("--model", "y", "--recipe", "tiny", "--drop", "spatial"), "other models have no streams"),
        (("x", "--boxes", "pixel_text"), "--boxes and --prompt go with --model"),
        (("--model", "nowhere/at-all", "--recipe", "tiny"), "cannot be loaded as a transformers image-text model"),
        (("--model", "y", "--recipe", "tiny", "--prompt", "where"), "must say where the question goes"),
        (("checkpoint:tiny", "--drop", "depth"), "no such stream; the model has semantic, spatial"),
    ],
)
def test_what_does_not_go_together_is_told(fusionkit, words: tuple[str, ...], message: str) -> None:
    done = fusionkit("evaluate", *words)
    assert done.code == 2
    assert message in done.err
    assert done.out == ""


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA with random weights, small enough for a test, saved with its processor."""
    import torch
    from transformers import (
        AutoTokenizer,
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaProcessor,
    )
    from transformers import LlavaForConditionalGeneration as Llava

    tokenizer = AutoTokenizer.from_pretrained(str(resources.files("fusionkit") / "assets" / "tiny_tokenizer"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    text = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=len(tokenizer)
    )
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids("<image>")
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "llava"
    Llava(config).save_pretrained(folder)
    size = {"height": 28, "width": 28}
    pictures = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=size)
    LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template="{% for m in messages %}{% for part in m['content'] %}{% if part['type'] == 'image' %}<image>{% else %}"
        "{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}",
    ).save_pretrained(folder)
    return folder


def test_any_transformers_model_answers_the_same_questions(fusionkit, llava: Path, small: Path, tmp_path: Path) -> None:
    words = ("evaluate", "--model", llava, "--recipe", small, "-n", "2", "-o", tmp_path / "out")
    done = fusionkit(*words, "--boxes", "pixel_text", "--json")
    assert done.code == 0, done.err
    assert {row["metric"] for row in json.loads(done.out)} == {"box_accuracy", "count_accuracy"}
    answers = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 12


def test_tables_escape_what_their_format_reads() -> None:
    rows = [{"name": "a|b_c", "value": 0.5}, {"name": "100 %", "value": None, "empty": None}]
    assert as_markdown(rows) == "| name | value |\n| --- | ---: |\n| a\\|b_c | 0.500 |\n| 100 % | - |\n"
    assert r"a|b\_c & 0.500 \\" in as_latex(rows)
    assert r"100 \% & - \\" in as_latex(rows)
