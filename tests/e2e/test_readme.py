"""What README.md promises: every snippet runs, every recipe plans, every command is one that exists.

Long commands run on a small shape: the checkpoint named is replaced by one of seconds, training by a few steps.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHORT = (
    "train.stages.encoders.steps=1",
    "train.stages.answers.steps=1",
    "train.stages.joint.steps=1",
    "train.global_batch_size=2",
    "train.turns_per_sample=1",
)


def snippets(*languages: str) -> list[str]:
    return [text for language, text in FENCE.findall(README) if language in languages]


def commands() -> list[str]:
    """Every `fusionkit ...` and `make ...` line: of shell snippets, and between backticks in the text."""
    shell = "\n".join(snippets("sh")).replace("\\\n", " ")
    lines = [line.strip() for line in shell.splitlines()]
    prose = FENCE.sub("", README)
    lines += re.findall(r"`(fusionkit [a-z][^`]*)`", re.sub(r"\s*\n\s*", " ", prose))
    return list(dict.fromkeys(" ".join(shlex.split(line, comments=True, posix=False)) for line in lines if line))


def named(text: str) -> str:
    """What a snippet calls itself: its file in a comment of the first line, or the recipe's name."""
    found = re.search(r"\A# (\S+\.(?:py|yaml))|^name: (\w+)", text, re.MULTILINE)
    return (found.group(1) or f"{found.group(2)}.yaml") if found else ""


@pytest.fixture
def here(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the README's commands name."""
    monkeypatch.chdir(tmp_path)
    for text in snippets("yaml", "python"):
        if named(text):
            (tmp_path / named(text)).write_text(text, encoding="utf-8")
    picture = Image.effect_noise((40, 30), 60).convert("RGB")
    for name in ("photo.jpg", "street.jpg", "pictures/000.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture.resize((120, 100)).save(tmp_path / name)
    for text in snippets("json"):
        (tmp_path / "mine.jsonl").write_text(text, encoding="utf-8")
    recipe = next(text for text in snippets("yaml"))
    (tmp_path / "my.yaml").write_text(
        recipe.replace("  project:", "  calm: {type: acme.temper}\n  project:"), encoding="utf-8"
    )
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "tiny").symlink_to(checkpoint)
    return tmp_path


# ------------------------------------------------------------------------------------------------ snippets
def test_there_is_something_to_test() -> None:
    assert len(snippets("python")) >= 3
    assert len(snippets("yaml")) >= 1
    assert len([line for line in commands() if line.startswith("fusionkit ")]) >= 10
    unknown = {language for language, _ in FENCE.findall(README)} - {"sh", "yaml", "python", "json", "text"}
    assert not unknown, f"snippets of a kind that no test runs: {unknown}"


@pytest.mark.parametrize("number", range(len(snippets("python"))))
def test_python_runs(number: int, here: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fusionkit
    from fusionkit.model import checkpoint as module

    text = snippets("python")[number]
    monkeypatch.setattr(module, "find_checkpoint", lambda _: checkpoint)  # the shipped one has a test of its own
    names: dict[str, Any] = {"__name__": f"readme_{number}"}
    exec(compile(text, f"README.md snippet {number}", "exec"), names)
    if "mixer" in names:
        assert names["plan"].parameters == sum(weight.numel() for weight in names["model"].parameters())
        assert isinstance(names["recipe"], type(fusionkit.load_recipe("builtin:tiny")))
    if "processor" in names:
        assert names["model"].config.model_type == "fusionkit"


@pytest.mark.parametrize("text", snippets("yaml"), ids=named)
def test_recipes_plan_and_build(text: str, here: Path) -> None:
    import fusionkit

    plan = fusionkit.plan(fusionkit.load_recipe(named(text)))
    model = fusionkit.build(plan, device="meta")
    assert plan.parameters == sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize("text", snippets("json"))
def test_data_rows_are_in_the_format(text: str, here: Path, fusionkit: Callable[..., Any]) -> None:
    for line in text.splitlines():
        json.loads(line)
    outcome = fusionkit("data", "check", "mine.jsonl")
    assert (outcome.code, outcome.err) == (0, ""), outcome


def test_the_plugin_is_as_short_as_promised_and_passes_the_kit(here: Path, fusionkit: Callable[..., Any]) -> None:
    (text,) = [text for text in snippets("python") if "BlockSpec(" in text]
    assert len([line for line in text.splitlines() if line.strip()]) <= 40
    without = fusionkit("plan", "my.yaml")
    assert (without.code, "acme.temper" in without.err) == (2, True)
    planned = fusionkit("plan", "my.yaml", "--plugin", "./my_block.py", "--meta")
    assert planned.code == 0, planned.err
    assert "fusion.calm" in planned.out


# ------------------------------------------------------------------------------------------------ commands
@pytest.mark.parametrize("line", commands())
def test_commands_are_as_written(
    line: str, here: Path, checkpoint: Path, fusionkit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    program, *words = shlex.split(line)
    if program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
        return
    if program == "pip":
        assert words == ["install", "."]
        return
    assert program == "fusionkit", f"no test knows how to try: {line}"
    if any("..." in word or word.isupper() for word in words) or words[0] in ("bench", "demo", "doctor", "sweep"):
        assert_understood(words)  # a placeholder, or minutes of work
        return
    words = [str(checkpoint) if word.startswith("checkpoint:") else word for word in words]
    if words[0] == "train":
        words += [word for change in SHORT for word in ("--set", change)]
        words = ["runs/other" if word == "runs/tiny" else word for word in words]
    if words[0] == "evaluate":
        words += ["--samples", "2"]
        words = ["scores" if word == "runs/tiny/scores" else word for word in words]
    if words[0] == "ask":
        words += ["--max-new-tokens", "4"]
    outcome = fusionkit(*words)
    assert outcome.code == 0, f"{line}\n{outcome.err}"


def assert_understood(words: list[str]) -> None:
    """The verb exists and takes these options; nothing is run."""
    from fusionkit.cli.app import load_verb
    from fusionkit.cli.main import QUICK, VERBS

    assert words[0] in VERBS, words
    if words[0] not in QUICK:
        given = [word for word in words[1:] if word != "..."]
        load_verb(words[0]).make_context(words[0], given)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_examples_ask_about_what_is_in_the_picture() -> None:
    """A question about `pictures/000.png` of `data sample tiny` is one that this picture answers."""
    import fusionkit
    from fusionkit.model.parts import build_object

    asked = [line for line in commands() if "pictures/000.png" in line]
    recipe = fusionkit.load_recipe("builtin:tiny")
    objects = build_object("datasets", recipe.evaluate[0].data)[0].objects
    seen = [" ".join((each.labels["colour"], each.labels["shape"])) for each in objects]
    for line in asked:
        assert any(name in line for name in seen), f"{line}: the picture has {', '.join(seen)}"
