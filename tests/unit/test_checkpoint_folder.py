"""What a saved folder holds, and what is said when a part of it is missing, damaged or of another recipe."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from model_recipe import decoder, picture, recipe
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import hub as transformers_hub

import fusionkit
import fusionkit.auto
from fusionkit.errors import CheckpointError, LockMismatchError
from fusionkit.model.card import write_card
from fusionkit.model.checkpoint import load_checkpoint, save_checkpoint
from fusionkit.model.folder import check_folder, find_checkpoint
from fusionkit.model.modeling import FusionVLM
from fusionkit.model.processing import FusionProcessor


@pytest.fixture(scope="module")
def parts() -> tuple[FusionVLM, FusionProcessor]:
    torch.manual_seed(0)
    model = fusionkit.build(recipe(language_model=decoder(tie_word_embeddings=True))).eval()
    return model, FusionProcessor.from_plan(model.plan)


@pytest.fixture(scope="module")
def original(parts: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("saved") / "run", *parts)


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "run"))


def logits(model: Any, processor: FusionProcessor) -> torch.Tensor:
    with torch.no_grad():
        return model(**processor(images=[picture(1)], text=[processor.prompt("count red")])).logits


# ------------------------------------------------------------------------------------------------------ weights
def test_weights_in_many_files(parts: Any, tmp_path: Path) -> None:
    model, processor = parts
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    processor.save_pretrained(tmp_path)
    shards = sorted(tmp_path.glob("model-*-of-*.safetensors"))
    assert len(shards) > 3
    assert not (tmp_path / "model.safetensors").exists()
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert torch.equal(logits(again, processor), logits(model, processor))
    assert torch.equal(logits(load_checkpoint(tmp_path)[0], processor), logits(model, processor))
    shards[1].unlink()
    with pytest.raises(
        CheckpointError, match=rf"1 of {len(shards)} files of weights are missing, first {shards[1].name}"
    ):
        load_checkpoint(tmp_path)


def test_fewer_files_leave_none_of_the_many(parts: Any, tmp_path: Path) -> None:
    model, processor = parts
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("model*.safetensors")] == ["model.safetensors"]
    assert torch.equal(logits(load_checkpoint(tmp_path)[0], processor), logits(model, processor))


# --------------------------------------------------------------------------------------------------------- lock
def change(path: Path, edit: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("name", ["lock.json", "tokenizer.json", "processor_config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(
        CheckpointError, match=rf"incomplete checkpoint, it has no {name} \(copy the whole folder again\)"
    ):
        load_checkpoint(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00" * 20])
def test_a_damaged_lock_is_told(folder: Path, text: str) -> None:
    (folder / "lock.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"lock\.json: no readable lock"):
        load_checkpoint(folder)


def test_a_lock_that_was_changed_is_told(folder: Path) -> None:
    change(folder / "lock.json", lambda lock: lock["model"]["recipe"].update(sequence_length=100))
    with pytest.raises(LockMismatchError, match=r"lock\.json: was changed after it was made"):
        load_checkpoint(folder)
    (folder / "lock.json").write_text("{}")
    with pytest.raises(LockMismatchError, match=r"lock\.json: is not a lock of format 1"):
        load_checkpoint(folder)


def test_the_lock_of_another_checkpoint_is_told(folder: Path, tmp_path: Path) -> None:
    other = fusionkit.build(recipe(sequence_length=100, language_model=decoder()))
    other.save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "lock.json", folder)
    with pytest.raises(CheckpointError, match=r"lock\.json: it locks another recipe than the one in config\.json"):
        load_checkpoint(folder)


def test_a_recipe_changed_inside_config_json_is_told(folder: Path) -> None:
    change(folder / "config.json", lambda config: config["lock"]["model"]["recipe"].update(sequence_length=100))
    with pytest.raises(LockMismatchError, match=r"config\.json: was changed after it was made"):
        load_checkpoint(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"config\.json: damaged: expected a JSON object"):
        find_checkpoint(folder)


def test_a_recipe_that_is_not_the_checkpoints_names_the_first_difference(folder: Path) -> None:
    other = fusionkit.load_recipe(recipe(sequence_length=100, language_model=decoder(tie_word_embeddings=True)))
    with pytest.raises(LockMismatchError, match="sequence_length: 100 here, 128 in the lock"):
        load_checkpoint(folder, expect=other)


def test_weights_of_another_recipe_are_told(folder: Path, tmp_path: Path) -> None:
    wider = fusionkit.build(recipe(language_model=decoder(intermediate_size=40, tie_word_embeddings=True)))
    wider.save_pretrained(tmp_path / "wider")
    shutil.copy(tmp_path / "wider" / "model.safetensors", folder)
    with pytest.raises(CheckpointError, match=r"down_proj\.weight is \[24, 40\], expected \[24, 32\], and 5 more"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [("checkpoint:nope", "there is checkpoint:tiny"), ("nobody/nothing", "no such checkpoint folder")],
)
def test_ask_refuses_what_is_no_checkpoint_before_torch_is_imported(name: str, message: str, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    picture(1).save(photo)
    code = (
        "import sys\nfrom fusionkit.cli.main import run\n"
        f"try:\n    run(['ask', {name!r}, {str(photo)!r}, 'count red'])\n"
        "except SystemExit as end:\n    assert end.code == 2\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert message in done.stderr


# --------------------------------------------------------------------------------------------------------- card
def test_the_card_says_what_is_in_the_folder(folder: Path, parts: Any) -> None:
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: image-text-to-text\n")
    assert f"{parts[0].plan.parameters:,} parameters" in card
    assert "| `language_model` | qwen2 | none: trained from scratch |" in card
    assert json.loads((folder / "lock.json").read_text())["model"]["hash"] in card
    assert "Not measured" in card
    text = re.search(r"```yaml\n(.*?)```", card, re.DOTALL).group(1)  # type: ignore[union-attr]
    (folder / "again.yaml").write_text(text)
    again = fusionkit.load_recipe(folder / "again.yaml")
    assert again.canonical() == parts[0].plan.recipe.canonical()


def test_the_cards_script_answers(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    card = (folder / "README.md").read_text(encoding="utf-8")
    script = re.search(r"```python\n(.*?)```", card, re.DOTALL).group(1)  # type: ignore[union-attr]
    monkeypatch.chdir(folder.parent)
    picture(1).save("photo.jpg")
    names: dict[str, Any] = {}
    exec(script, names)
    assert len(script.splitlines()) <= 12
    assert names["answer"].shape[1] <= 64
    assert capsys.readouterr().out.endswith("\n")


def test_scores_that_were_measured_are_shown(folder: Path) -> None:
    row = {"data": "val", "metric": "box_accuracy", "value": 0.5, "low": 0.4, "high": 0.6, "count": 64}
    (folder / "scores").mkdir()
    (folder / "scores" / "scores.json").write_text(json.dumps({"scores": [row, row | {"low": None, "high": None}]}))
    card = write_card(folder).read_text(encoding="utf-8")
    assert "| val | box_accuracy | 0.500 | 0.400 | 0.600 | 64 |" in card
    assert "| val | box_accuracy | 0.500 |  |  | 64 |" in card
    (folder / "scores" / "scores.json").write_text('{"scores": [{}]}')
    with pytest.raises(CheckpointError, match=r"scores\.json: no readable scores"):
        write_card(folder)


def test_licences_of_every_part_are_shown(tmp_path: Path) -> None:
    big = fusionkit.build("builtin:come_vl", device="meta")
    (tmp_path / "lock.json").write_text(json.dumps(big.config.lock))
    card = write_card(tmp_path, where="me/come_vl").read_text(encoding="utf-8")
    assert "Qwen/Qwen2-7B" in card.split("\n---\n")[0]
    assert re.search(r"\| `streams\.spatial\.encoder` \| vit_large_patch16_dinov3\S* \| dinov3\S* \| OWN TERMS", card)
    assert 'from_pretrained("me/come_vl")' in card


def test_the_shipped_checkpoint_has_its_card() -> None:
    folder = find_checkpoint("checkpoint:tiny")
    check_folder(folder)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert json.loads((folder / "lock.json").read_text())["model"]["hash"] in card
    for row in json.loads((folder / "scores.json").read_text())["scores"]:
        assert f"| {row['data']} | {row['metric']} | {row['value']:.3f} |" in card


# ---------------------------------------------------------------------------------------------------------- hub
class Hub:
    """As much of the hub's client as an upload uses; keeps the files."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def create_repo(self, repo_id: str, **_: Any) -> Any:
        return type("Repo", (), {"repo_id": repo_id})

    def create_branch(self, **_: Any) -> None:
        pass

    def create_commit(self, repo_id: str, operations: Any, **_: Any) -> str:
        for operation in operations:
            with operation.as_file() as file:
                self.files[operation.path_in_repo] = file.read()
        return repo_id


@pytest.mark.parametrize("route", ["push_to_hub", "save_pretrained"])
def test_an_upload_has_weights_lock_and_card(
    parts: Any, route: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub()
    monkeypatch.setattr(transformers_hub, "hf_api", lambda *_, **__: hub)
    monkeypatch.setattr("transformers.modeling_utils.hf_api", lambda *_, **__: hub)
    monkeypatch.setattr(transformers_hub, "create_and_tag_model_card", lambda *_, **__: Card())
    monkeypatch.setattr("transformers.modeling_utils.create_and_tag_model_card", lambda *_, **__: Card())
    if route == "push_to_hub":
        parts[0].push_to_hub("me/small")
    else:
        parts[0].save_pretrained(tmp_path / "small", push_to_hub=True, repo_id="me/small")
    assert {"config.json", "model.safetensors", "lock.json", "README.md"} <= set(hub.files)
    assert b'from_pretrained("me/small")' in hub.files["README.md"]


class Card:
    """The card without content that transformers would upload."""

    def save(self, path: str) -> None:
        Path(path).write_text("empty")


def test_the_processor_uploads_too(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub()
    monkeypatch.setattr(transformers_hub, "hf_api", lambda *_, **__: hub)
    monkeypatch.setattr(transformers_hub, "create_and_tag_model_card", lambda *_, **__: Card())
    parts[1].push_to_hub("me/small")
    assert {"processor_config.json", "tokenizer.json"} <= set(hub.files)


def test_processor_of_a_folder_reads_as_auto_processor(folder: Path) -> None:
    assert type(AutoProcessor.from_pretrained(folder)) is FusionProcessor
