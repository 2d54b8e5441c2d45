"""Bad input, through the command line: one clear line each, exit code 2, no traceback, and nothing is lost."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Fusionkit = Callable[..., Any]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test runs in a folder of its own, so that messages show short paths."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def picture(here: Path) -> str:
    Image.effect_noise((40, 30), 60).convert("RGB").save(here / "photo.png")
    return "photo.png"


def refused(outcome: Any, line: str) -> None:
    """The command ended with exactly this line and nothing else on stderr, no result, and code 2."""
    assert outcome.err == f"error: {line}\n"
    assert (outcome.code, outcome.out) == (2, "")


# ---------------------------------------------------------------------------------------------- recipes
RECIPES = {
    "unknown block": (
        "type: average_pool",
        "type: avrage_pool",
        "small.yaml:19:10: fusion.pool.type: no step called 'avrage_pool' is installed; did you mean 'average_pool'? "
        "(`fusionkit list` shows all)",
    ),
    "unknown key": (
        "hidden: 32}",
        "hiden: 32}",
        "small.yaml:20:24: fusion.project.hiden: unknown key (did you mean 'hidden'?)",
    ),
    "wrong type": (
        "sequence_length: 128",
        "sequence_length: long",
        "small.yaml:4:1: sequence_length: must be an integer, got 'long'",
    ),
    "layer outside the encoder": (
        "first: 1, last: 2",
        "first: 1, last: 9",
        "small.yaml:9:37: streams.semantic.select.last: layer 9 is outside the encoder, which has layers 0 to 2 "
        "(use at most 2)",
    ),
    "heads that do not divide": (
        "memory: spatial, heads: 2",
        "memory: spatial, heads: 3",
        "small.yaml:18:73: fusion.align.heads: 3 heads do not divide the query width 16 (use 1 or 2 or 4)",
    ),
    "pool that does not tile": (
        "window: [2, 2]",
        "window: [4, 4]",
        "small.yaml:19:30: fusion.pool.window: window 4x4 does not tile the grid 6x6 "
        "(use a window whose rows divide 6 and columns divide 6)",
    ),
    "budget exceeded": (
        "sequence_length: 128",
        "sequence_length: 8",
        "small.yaml:4:1: sequence_length: the largest picture takes 9 tokens (1 crops of 9), which leaves no room for "
        "text in 8 (set at least `sequence_length: 64`, allow fewer crops, or pool more)",
    ),
}


@pytest.mark.parametrize("case", RECIPES)
def test_a_wrong_recipe_is_one_line_with_its_place(case: str, small: Path, fusionkit: Fusionkit) -> None:
    right, wrong, line = RECIPES[case]
    text = small.read_text()
    assert text.count(right) == 1
    small.write_text(text.replace(right, wrong))
    refused(fusionkit("plan", "small.yaml"), line)


@pytest.mark.parametrize("verb", ["train", "inspect", "graph", "lock"])
def test_every_verb_that_plans_says_the_same(verb: str, small: Path, picture: str, fusionkit: Fusionkit) -> None:
    right, wrong, line = RECIPES["unknown block"]
    small.write_text(small.read_text().replace(right, wrong))
    rest = {"train": ["-o", "run"], "inspect": [picture]}.get(verb, [])
    refused(fusionkit(verb, "small.yaml", *rest), line)
    assert not Path("run").exists()
    assert not Path("run.partial").exists()


def test_a_wrong_change_from_outside_names_itself(small: Path, fusionkit: Fusionkit) -> None:
    refused(
        fusionkit("plan", "small.yaml", "--set", "fusion.align.heads=3"),
        "--set fusion.align.heads=3: fusion.align.heads: 3 heads do not divide the query width 16 (use 1 or 2 or 4)",
    )


def test_all_that_is_wrong_is_said_at_once(small: Path, fusionkit: Fusionkit) -> None:
    text = small.read_text().replace("hidden: 32}", "hiden: 32}").replace("sequence_length: 128", "sequence_length: x")
    small.write_text(text)
    outcome = fusionkit("validate", "small.yaml")
    assert outcome.code == 2
    assert [line.split(": ")[1] for line in outcome.err.splitlines()] == ["small.yaml:4:1", "small.yaml:20:24"]


def test_recipes_that_extend_each_other(here: Path, fusionkit: Fusionkit) -> None:
    (here / "a.yaml").write_text("extends: b.yaml\nname: a\n")
    (here / "b.yaml").write_text("extends: a.yaml\nname: b\n")
    refused(fusionkit("plan", "a.yaml"), "b.yaml:1:1: extends: goes round in a circle: a.yaml is extended already")


def test_a_recipe_that_is_not_there(fusionkit: Fusionkit) -> None:
    refused(fusionkit("plan", "no.yaml"), "no.yaml: no such file")
    refused(fusionkit("plan", "tinny"), "builtin:tinny: no recipe builtin:tinny (did you mean builtin:tiny?)")


# --------------------------------------------------------------------------------- pictures and questions
PICTURES = {
    "missing": (None, "x.png: no such picture; check the path"),
    "broken": (
        lambda data: data[: len(data) // 2],
        "x.png: damaged or truncated picture (image file is truncated); save it again or leave it out",
    ),
    "not a picture": (
        lambda _: b"hello",
        "x.png: not a picture that Pillow can read; convert it to PNG or JPEG",
    ),
    "empty": (lambda _: b"", "x.png: not a picture that Pillow can read; convert it to PNG or JPEG"),
}


@pytest.mark.parametrize("case", PICTURES)
def test_pictures_that_cannot_be_used(
    case: str, picture: str, small: Path, checkpoint: Path, fusionkit: Fusionkit
) -> None:
    spoil, line = PICTURES[case]
    if spoil is not None:
        Path("x.png").write_bytes(spoil(Path(picture).read_bytes()))
    refused(fusionkit("ask", checkpoint, "x.png", "count red", "-o", "out.png"), line)
    refused(fusionkit("inspect", small, "x.png"), line)
    assert not Path("out.png").exists()


@pytest.mark.parametrize("question", ["", "  \t"])
def test_an_empty_question(question: str, picture: str, checkpoint: Path, fusionkit: Fusionkit) -> None:
    refused(
        fusionkit("ask", checkpoint, picture, question),
        'the question is empty; ask something, for example "point to the red circle"',
    )


def row(question: str, answer: str = "2", image: str = "photo.png") -> str:
    talk = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return json.dumps({"image": image, "conversations": talk}) + "\n"


QUESTIONS = {
    "empty question": (row(" "), "q.jsonl:1: conversations[0]: the question is empty; expected text in 'value'"),
    "missing picture": (
        row("count red") + row("count red", image="no.png"),
        "q.jsonl:2: no.png: no such picture; check the path",
    ),
    "not JSON": ("{\n", "q.jsonl:1: not valid JSON at column 2: Expecting property name enclosed in double quotes"),
    "nothing": ("", "q.jsonl: no rows; the dataset `jsonl` needs one JSON object per line"),
}


@pytest.mark.parametrize("case", QUESTIONS)
def test_question_files_are_read_before_the_model(
    case: str, here: Path, picture: str, small: Path, fusionkit: Fusionkit
) -> None:
    text, line = QUESTIONS[case]
    (here / "q.jsonl").write_text(text)
    refused(fusionkit("ask", "no_checkpoint", "--questions", "q.jsonl"), line)
    outcome = fusionkit("train", small, "--data", "q.jsonl", "-o", "run")
    assert outcome.code == 2
    assert re.fullmatch(
        rf"error: (.*/)?{re.escape(line)}( \(`fusionkit data check q.jsonl` shows .*\))?\n", outcome.err
    )
    assert not Path("run.partial").exists()


def test_a_question_file_that_is_not_there(fusionkit: Fusionkit) -> None:
    refused(
        fusionkit("ask", "no_checkpoint", "--questions", "q.jsonl"),
        "q.jsonl: no such file; the dataset `jsonl` needs a file with one JSON object per line",
    )


# ---------------------------------------------------------------------------------------------- checkpoints
def test_a_checkpoint_that_is_not_there(picture: str, fusionkit: Fusionkit) -> None:
    line = "runs/x: no such checkpoint folder (train one: `fusionkit train RECIPE -o runs/x`; or use checkpoint:tiny)"
    refused(fusionkit("ask", "runs/x", picture, "count red"), line)
    refused(fusionkit("evaluate", "runs/x"), line)
    assert fusionkit("ask", "checkpoint:x", picture, "count red").err.startswith(
        "error: no checkpoint 'checkpoint:x' is shipped; there is "
    )
    Path("empty").mkdir()
    refused(fusionkit("evaluate", "empty"), "empty: not a checkpoint, it has no config.json")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "processor_config.json"])
def test_an_incomplete_checkpoint(name: str, checkpoint: Path, picture: str, fusionkit: Fusionkit) -> None:
    shutil.copytree(checkpoint, "copy")
    Path("copy", name).unlink()
    refused(
        fusionkit("ask", "copy", picture, "count red"),
        f"copy: incomplete checkpoint, it has no {name} (copy the whole folder again)",
    )


def test_damaged_weights(checkpoint: Path, picture: str, fusionkit: Fusionkit) -> None:
    shutil.copytree(checkpoint, "copy")
    weights = Path("copy/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    outcome = fusionkit("ask", "copy", picture, "count red")
    assert (outcome.code, outcome.out) == (2, "")
    assert re.fullmatch(r"error: copy: weights are damaged: .* \(copy it again, or train it again\)\n", outcome.err)


def test_weights_of_another_recipe(checkpoint: Path, picture: str, fusionkit: Fusionkit) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(checkpoint, "copy")
    weights = Path("copy/model.safetensors")
    state = load_file(weights)
    state["fusion.project.extra"] = state.pop("fusion.align.gate")
    save_file(state, weights, metadata={"format": "pt"})
    refused(
        fusionkit("ask", "copy", picture, "count red"),
        "copy: weights do not fit the recipe in its config.json: fusion.align.gate is missing, and 1 more "
        "(keep the files of one checkpoint together)",
    )


def test_a_recipe_inside_that_was_edited(checkpoint: Path, picture: str, fusionkit: Fusionkit) -> None:
    shutil.copytree(checkpoint, "copy")
    config = Path("copy/config.json")
    text = config.read_text()
    assert '"hidden": 32' in text
    config.write_text(text.replace('"hidden": 32', '"hidden": 31'))
    refused(
        fusionkit("ask", "copy", picture, "count red"),
        "copy/config.json: was changed after it was made: its recipe does not have its hash (make it anew)",
    )


def test_a_checkpoint_of_another_recipe(checkpoint: Path, small: Path, fusionkit: Fusionkit) -> None:
    assert fusionkit("lock", "small.yaml", "--check", checkpoint).code == 0
    outcome = fusionkit("lock", "small.yaml", "--check", checkpoint, "--set", "fusion.align.heads=4")
    refused(outcome, "--set fusion.align.heads=4: fusion.align.heads: 4 here, 2 in the lock")


def test_a_run_is_resumed_with_its_own_recipe_only(small: Path, fusionkit: Fusionkit) -> None:
    assert fusionkit("train", "small.yaml", "-o", "run", "--stop-after", "1").code == 0
    before = files("run.partial")
    refused(
        fusionkit("train", "small.yaml", "-o", "run", "--resume", "--set", "fusion.align.heads=4"),
        "--set fusion.align.heads=4: fusion.align.heads: 4 here, 2 in the lock "
        "(run.partial was started with another recipe: resume it with that one, or choose another -o)",
    )
    refused(
        fusionkit("train", "small.yaml", "-o", "run", "--resume", "--set", "train.seed=3"),
        "run.partial: this run was started with other training settings; resume it with the same ones",
    )
    refused(
        fusionkit("train", "small.yaml", "-o", "run"),
        "run.partial exists; continue it with --resume, or replace it with --overwrite, or choose another -o",
    )
    assert files("run.partial") == before


def files(folder: str) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


# --------------------------------------------------------------------------------------- no place to write
IN_THE_WAY = {
    "lock": (["lock", "small.yaml", "-o", "way/x.json"], "way/x.json: cannot be written: way is a file, not a folder"),
    "schema": (["schema", "-o", "way/x.json"], "way/x.json: cannot be written: way is a file, not a folder"),
    "graph": (["graph", "small.yaml", "-o", "way/x.svg"], "way/x.svg: cannot be written: way is a file, not a folder"),
    "sample": (["data", "sample", "small.yaml", "-n", "1", "-o", "way"], "way: cannot write samples: File exists"),
    "train": (["train", "small.yaml", "-o", "way/x"], "way/x.partial: cannot write there: Not a directory"),
    "ask": (["ask", "CKPT", "photo.png", "hi", "-o", "way/x.png"], "way: cannot make this folder: way is a file"),
    "ask many": (["ask", "CKPT", "--questions", "q.jsonl", "-o", "way"], "way: cannot make this folder: way is a file"),
    "evaluate": (["evaluate", "CKPT", "-n", "1", "-o", "way/x"], "way/x: cannot make this folder: way is a file"),
}


@pytest.mark.parametrize("case", IN_THE_WAY)
def test_a_file_in_the_way_of_the_output(
    case: str, here: Path, small: Path, picture: str, checkpoint: Path, fusionkit: Fusionkit
) -> None:
    words, line = IN_THE_WAY[case]
    (here / "q.jsonl").write_text(row("count red"))
    (here / "way").write_text("precious")
    outcome = fusionkit(*[str(checkpoint) if word == "CKPT" else word for word in words])
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"error: {line}")
    assert outcome.err.count("\n") == 1
    assert (here / "way").read_text() == "precious"


@pytest.mark.parametrize("name", ["out", "out.xyz"])
def test_a_name_that_is_no_picture(name: str, picture: str, fusionkit: Fusionkit) -> None:
    refused(
        fusionkit("ask", "no_checkpoint", picture, "count red", "-o", name),
        f"-o {name}: expected a name that ends in .png (or .jpg, .webp)",
    )


def test_no_permission(small: Path, monkeypatch: pytest.MonkeyPatch, fusionkit: Fusionkit) -> None:
    """Root may write anywhere, so the operating system's answer is given for it."""

    def denied(self: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    Path("x.json").write_text("before")
    monkeypatch.setattr(Path, "write_text", denied)
    refused(fusionkit("lock", "small.yaml", "-o", "x.json"), "x.json: cannot be written: Permission denied")
    monkeypatch.setattr(Path, "mkdir", denied)
    refused(fusionkit("train", "small.yaml", "-o", "run"), "run.partial: cannot write there: Permission denied")
    assert Path("x.json").read_text() == "before"


# --------------------------------------------------------------------------------------------- a full disk
FULL = OSError(errno.ENOSPC, "No space left on device")


def full(*_: Any, **__: Any) -> None:
    raise FULL


@pytest.mark.parametrize("verb", ["lock", "graph"])
def test_a_full_disk_leaves_the_old_result(
    verb: str, small: Path, monkeypatch: pytest.MonkeyPatch, fusionkit: Fusionkit
) -> None:
    name = {"lock": "x.json", "graph": "x.svg"}[verb]
    Path(name).write_text("before")
    monkeypatch.setattr(Path, "replace", full)
    refused(fusionkit(verb, "small.yaml", "-o", name), f"{name}: cannot be written: No space left on device")
    assert Path(name).read_text() == "before"
    assert sorted(path.name for path in Path().iterdir()) == sorted(["small.yaml", name])


def test_an_answer_is_told_even_if_it_cannot_be_drawn(
    picture: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, fusionkit: Fusionkit
) -> None:
    monkeypatch.setattr(Image.Image, "save", full)
    outcome = fusionkit("ask", checkpoint, picture, "count red", "-o", "out.png", "--json", "--max-new-tokens", "2")
    assert outcome.code == 2
    assert json.loads(outcome.out)["question"] == "count red"
    assert outcome.err == "error: out.png: cannot be written: No space left on device\n"


def test_a_full_disk_while_the_checkpoint_is_saved_loses_nothing(
    small: Path, monkeypatch: pytest.MonkeyPatch, fusionkit: Fusionkit
) -> None:
    from fusionkit.model.modeling import FusionVLM

    Path("run").mkdir()
    Path("run/old").write_text("before")
    monkeypatch.setattr(FusionVLM, "save_pretrained", full)
    outcome = fusionkit("train", "small.yaml", "-o", "run", "--overwrite")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.splitlines()[-1] == (
        "error: run: cannot save the checkpoint: No space left on device (what was there before is unchanged); "
        "what was saved before is kept, continue with: fusionkit train small.yaml -o run --resume"
    )
    assert files("run") == {"run/old": b"before"}
    monkeypatch.undo()
    monkeypatch.chdir(small.parent)
    shutil.rmtree("run")
    resumed = fusionkit("train", "small.yaml", "-o", "run", "--resume", "--json")
    assert (resumed.code, json.loads(resumed.out)["steps"]) == (0, 0)
    assert Path("run/model.safetensors").is_file()
    assert not Path("run.partial").exists()


def test_a_full_disk_during_a_stage_continues_from_the_last_saved_state(
    small: Path, monkeypatch: pytest.MonkeyPatch, fusionkit: Fusionkit
) -> None:
    """safetensors has an error of its own for it, torch another."""
    from safetensors import SafetensorError

    from fusionkit.train import trainer

    saved = trainer.save_model
    calls: list[str] = []

    def sometimes_full(model: Any, path: str, **options: Any) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        saved(model, path, **options)

    monkeypatch.setattr(trainer, "save_model", sometimes_full)
    outcome = fusionkit("train", "small.yaml", "-o", "run", "--set", "train.save_every=1")
    assert (outcome.code, outcome.out, len(calls)) == (2, "", 3)
    assert outcome.err.splitlines()[-1] == (
        "error: run.partial/stage-1/checkpoint-1: cannot save the state of training: Error while serializing: I/O error: "
        "No space left on device (os error 28); what was saved before is kept, "
        "continue with: fusionkit train small.yaml -o run --set train.save_every=1 --resume"
    )
    assert not list(Path().glob("run.partial/stage-1/checkpoint-1"))
    resumed = fusionkit("train", "small.yaml", "-o", "run", "--set", "train.save_every=1", "--resume", "--json")
    assert (resumed.code, json.loads(resumed.out)["steps"]) == (0, 2)


def test_a_run_that_could_not_begin_is_not_in_the_way_of_the_next(
    small: Path, monkeypatch: pytest.MonkeyPatch, fusionkit: Fusionkit
) -> None:
    from fusionkit.train import trainer

    monkeypatch.setattr(trainer, "save_model", full)
    outcome = fusionkit("train", "small.yaml", "-o", "run")
    assert outcome.err.splitlines()[-1] == (
        "error: run.partial/stage-0/checkpoint-2: cannot save the state of training: No space left on device"
    )
    assert not Path("run.partial").exists()


# ------------------------------------------------------------------------------------------------- plugins
def test_plugin_files_that_cannot_be_used(small: Path, here: Path, fusionkit: Fusionkit) -> None:
    (here / "bad.py").write_text("import nothing_here\n")
    (here / "none.py").write_text("x = 1\n")
    refused(fusionkit("plan", small, "--plugin", "no.py"), "no.py: no such file; --plugin takes a Python file")
    refused(
        fusionkit("plan", small, "--plugin", "none.py"),
        "none.py: no BlockSpec found; assign one at the top level, with a config class of this file",
    )
    outcome = fusionkit("plan", small, "--plugin", "bad.py")
    assert (outcome.code, outcome.out) == (2, "")
    assert re.fullmatch(
        r"error: plugin file bad\.py does not load: running it: ModuleNotFoundError: No module named 'nothing_here' "
        r"\(at .*bad\.py:1 in <module>\)\n",
        outcome.err,
    )
