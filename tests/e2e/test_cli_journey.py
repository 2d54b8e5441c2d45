"""A person's way through the command line, from `list` to an answer drawn over a picture, on a recipe of seconds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from temper_block import TEMPER

from fusionkit.cli.main import VERBS

Fusionkit = Callable[..., Any]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def succeeds(fusionkit: Fusionkit) -> Callable[..., str]:
    """Runs a command that must end well; gives what it printed."""

    def call(*words: object) -> str:
        outcome = fusionkit(*words)
        assert outcome.code == 0, f"{words}: {outcome.err}"
        return str(outcome.out)

    return call


@pytest.fixture
def as_json(succeeds: Callable[..., str]) -> Callable[..., Any]:
    return lambda *words: json.loads(succeeds(*words, "--json"))


@pytest.fixture
def with_plugin(here: Path, small: Path) -> list[str]:
    """A recipe that uses a block of a local file, and the option that loads it."""
    (here / "my_block.py").write_text(TEMPER)
    text = small.read_text()
    assert "  project:" in text
    small.write_text(text.replace("  project:", "  calm: {type: acme.temper, factor: 0.25}\n  project:"))
    return ["--plugin", "./my_block.py"]


@pytest.fixture
def picture(here: Path) -> str:
    Image.effect_noise((40, 30), 60).convert("RGB").save(here / "photo.png")
    return "photo.png"


def size(path: str | Path) -> tuple[int, int]:
    with Image.open(path) as opened:
        return opened.size


# ------------------------------------------------------------------------------------------------- looking
def test_looking_around(succeeds: Callable[..., str], as_json: Callable[..., Any]) -> None:
    assert "rope_cross_attention" in succeeds("list")
    assert {"blocks", "recipes"} <= as_json("list").keys()
    assert "Guarantees" in succeeds("show", "mixer/orthogonal")
    assert as_json("show", "orthogonal")["family"] == "mixers"
    assert "builtin:tiny" in succeeds("show", "tiny")


def test_a_recipe_before_it_is_built(
    here: Path, small: Path, picture: str, succeeds: Callable[..., str], as_json: Callable[..., Any]
) -> None:
    assert succeeds("validate", small).startswith(f"{small}: valid, 2 streams, ")
    assert as_json("validate", small)["valid"] is True
    assert "fusion.align" in succeeds("plan", small, "--image", "64x48")
    planned = as_json("plan", small)
    assert sum(node["parameters"] for node in planned["nodes"]) == planned["parameters"]["total"]
    assert "visual tokens 9" in succeeds("inspect", small, picture, "-o", "crops.png")
    assert as_json("inspect", small, picture)["visual_tokens"] == 9
    assert size("crops.png")[0] >= 40
    assert succeeds("graph", small).startswith(("flowchart", "graph", "---"))
    assert as_json("graph", small)["edges"]
    succeeds("graph", small, "-o", "g.svg")
    assert (here / "g.svg").read_text().startswith("<svg")
    assert succeeds("export", small).startswith("schema: 1\n")
    assert as_json("export", small)["name"] == "small"
    assert json.loads(succeeds("schema"))["$schema"]
    succeeds("lock", small, "-o", "small.lock.json")
    assert as_json("lock", small)["model"] == json.loads((here / "small.lock.json").read_text())["model"]
    assert "the model is the one locked in" in succeeds("lock", small, "--check", "small.lock.json")


def test_what_is_exported_means_the_same(
    here: Path, small: Path, succeeds: Callable[..., str], fusionkit: Fusionkit
) -> None:
    (here / "full.yaml").write_text(succeeds("export", small))
    assert succeeds("diff", small, "full.yaml") == "the same\n"
    changed = fusionkit("diff", small, "full.yaml", "--set", "fusion.project.hidden=48", "--json")
    assert json.loads(changed.out)["equal"] is False
    assert "fusion.project.hidden" in json.dumps(json.loads(changed.out))


def test_sample_questions_are_in_the_documented_format(
    here: Path, succeeds: Callable[..., str], as_json: Callable[..., Any]
) -> None:
    assert succeeds("data", "sample", "tiny", "-n", "3", "-o", "questions") == "questions/questions.jsonl\n"
    rows = [json.loads(line) for line in (here / "questions/questions.jsonl").read_text().splitlines()]
    assert [row["image"] for row in rows] == ["000.png", "001.png", "002.png"]
    for row in rows:
        assert size(here / "questions" / row["image"]) == (48, 48)
        assert [turn["from"] for turn in row["conversations"]] == ["human", "gpt"] * (len(row["conversations"]) // 2)
        answers = "".join(turn["value"] for turn in row["conversations"][1::2])
        assert answers.count("<box>") == len(row.get("boxes", []))
        assert answers.count("<point>") == len(row.get("points", []))
    report = as_json("data", "check", "questions/questions.jsonl", "-o", "sheet.png")
    assert (report["rows"], report["usable"], report["broken"]) == (3, 3, [])
    assert size("sheet.png")[0] > 300


# ---------------------------------------------------------------------------------------- train to answer
def test_train_evaluate_ask(
    here: Path, small: Path, picture: str, fusionkit: Fusionkit, as_json: Callable[..., Any]
) -> None:
    trained = fusionkit("train", small, "-o", "runs/one", "--set", "train.stages.encoders.steps=1")
    assert trained.code == 0, trained.err
    assert re.fullmatch(r"runs/one: 3 steps in \d+ s\n", trained.out)
    assert "fusion.align" in trained.err
    assert "ask it:   fusionkit ask runs/one photo.jpg" in trained.err
    assert {path.name for path in (here / "runs").iterdir()} == {"one"}

    scores = as_json("evaluate", "runs/one", "-n", "2", "-o", "scores")
    assert {row["metric"] for row in scores} == {"box_accuracy", "count_accuracy"}
    page = (here / "scores/report.html").read_text()
    assert "<table>" in page
    assert "data:image/png;base64," in page
    assert {"scores.json", "answers.jsonl"} < {path.name for path in (here / "scores").iterdir()}

    few = ("--max-new-tokens", "6")
    asked = fusionkit("ask", "runs/one", picture, "box the red circle", "-o", "out.png", *few)
    assert asked.code == 0, asked.err
    assert asked.out.strip()
    assert asked.err == "drawn: out.png\n"
    assert size("out.png")[0] == 40 * 13
    answer = as_json("ask", "runs/one", picture, "box the red circle", *few)
    assert answer.keys() == {"picture", "question", "answer", "boxes", "points", "malformed"}

    assert fusionkit("data", "sample", small, "-n", "2", "-o", "questions").code == 0
    rows = as_json("ask", "runs/one", "--questions", "questions", "-o", "answers", *few)
    pictures = sorted(path.name for path in (here / "answers").glob("*.png"))
    assert pictures == [f"{number:03d}.png" for number in range(len(rows))]
    page = (here / "answers/index.html").read_text()
    assert page.count("<figure>") == len(rows)
    assert page.count("<h2>") == 2
    assert rows[0]["question"] in page

    own = as_json("train", small, "--data", "questions/questions.jsonl", "-o", "runs/own")
    assert (own["checkpoint"], own["steps"]) == ("runs/own", 2)


def test_an_interrupted_run_says_how_to_go_on_and_does(small: Path, here: Path, fusionkit: Fusionkit) -> None:
    stopped = fusionkit("train", small, "-o", "run", "--set", "train.seed=5", "--stop-after", "1")
    assert stopped.code == 0
    *_, saved, again = stopped.err.splitlines()
    assert saved == "stopped in stage 'encoders' after step 1; everything is saved in run.partial"
    assert again == f"continue: fusionkit train {small} -o run --set train.seed=5 --resume"
    resumed = fusionkit(*again.removeprefix("continue: fusionkit ").split())
    assert resumed.code == 0, resumed.err
    assert resumed.out.startswith("run: 3 steps in ")


# -------------------------------------------------------------------------------------------------- plugins
@pytest.mark.parametrize(
    "words",
    [
        ["validate", "small.yaml"],
        ["plan", "small.yaml"],
        ["plan", "small.yaml", "--meta"],
        ["inspect", "small.yaml", "photo.png"],
        ["graph", "small.yaml"],
        ["schema"],
        ["lock", "small.yaml"],
        ["diff", "small.yaml", "small.yaml"],
        ["export", "small.yaml"],
        ["show", "adapter/acme.temper"],
        ["data", "sample", "small.yaml", "-n", "1"],
    ],
    ids=" ".join,
)
def test_a_local_block_works_on_every_verb(
    words: list[str], with_plugin: list[str], picture: str, succeeds: Callable[..., str], fusionkit: Fusionkit
) -> None:
    succeeds(*words, *with_plugin)
    if words[0] not in ("schema", "show"):
        unknown = fusionkit(*words)
        assert unknown.code == 2
        assert "acme.temper" in unknown.err


def test_a_local_block_is_trained_evaluated_and_asked(
    with_plugin: list[str], small: Path, picture: str, succeeds: Callable[..., str], fusionkit: Fusionkit
) -> None:
    succeeds("train", small, "-o", "run", *with_plugin)
    assert "held_out" in succeeds("evaluate", "run", "-n", "1", *with_plugin)
    assert succeeds("ask", "run", picture, "count red", "--max-new-tokens", "2", *with_plugin)
    forgotten = fusionkit("ask", "run", picture, "count red")
    assert (forgotten.code, forgotten.out) == (2, "")
    assert "acme.temper" in forgotten.err
    assert "Traceback" not in forgotten.err


# ------------------------------------------------------------------------------------------- health and help
def test_the_doctor_reports_on_every_block(
    with_plugin: list[str], monkeypatch: pytest.MonkeyPatch, fusionkit: Fusionkit
) -> None:
    """Loading all blocks in processes of their own takes half a minute and has its own tests: here, of one file."""
    from fusionkit import discovery

    rows = discovery.scan()
    one = tuple(entry for entry in rows.blocks if entry.name == "average_pool")
    monkeypatch.setattr(discovery, "scan", lambda: replace(rows, blocks=one))
    outcome = fusionkit("doctor", "--json", *with_plugin)
    assert outcome.code == 0, outcome.out
    assert {check["address"]: check["state"] for check in json.loads(outcome.out)["checks"]} == {
        "poolers/average_pool": "ok",
        "my_block.py": "ok",
    }


def commands() -> list[str]:
    """Every verb; of verbs with verbs of their own, those too."""
    found = []
    for name, verb in VERBS.items():
        app = getattr(import_module(verb.module), "app", None)
        below = [command.name or command.callback.__name__ for command in app.registered_commands] if app else []
        found += [f"{name} {each}" for each in below] or [name]
    return found


@pytest.mark.parametrize("command", commands())
def test_help_teaches_by_example(command: str, succeeds: Callable[..., str]) -> None:
    text = succeeds(*command.split(), "--help")
    assert [line for line in text.splitlines() if line.strip().startswith(f"fusionkit {command}")], text
