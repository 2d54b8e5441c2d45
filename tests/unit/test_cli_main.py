"""The command line as a whole: verbs, help, exit codes, and how errors end."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fusionkit.cli import main, output
from fusionkit.cli.app import load_verb
from fusionkit.cli.main import QUICK, VERBS, run
from fusionkit.cli.options import recipe_source
from fusionkit.errors import PlanError, Problem, UsageError


def outcome(*words: str) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as ended:
        run(words)
    return int(ended.value.code or 0)


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., None]], None]:
    """Puts a function in the place of the verb `show`."""

    def replace(function: Callable[..., None]) -> None:
        monkeypatch.setitem(sys.modules, "fusionkit.cli.fake", SimpleNamespace(command=function))
        monkeypatch.setitem(main.VERBS, "show", main.Verb("fusionkit.cli.fake", "Fake."))

    return replace


def raising(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


# ------------------------------------------------------------------------------------------------- help
def test_without_words_or_with_help_all_verbs_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome("--help") == 0
    text = capsys.readouterr().out
    for name, verb in VERBS.items():
        assert f"  {name} " in text
        assert verb.help in text
    assert "fusionkit ask checkpoint:tiny photo.jpg" in text


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    import fusionkit

    assert outcome("--version") == 0
    assert capsys.readouterr().out == f"fusionkit {fusionkit.__version__}\n"


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_teaches_by_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in [(name, sub) for sub in getattr(load_verb(name), "commands", ())] or [(name,)]:
        assert outcome(*words, "--help") == 0
        assert f"fusionkit {' '.join(words)}" in capsys.readouterr().out.split("\n", 1)[1]


@pytest.mark.parametrize("name", VERBS)
def test_help_lines_fit_beside_the_verb(name: str) -> None:
    assert VERBS[name].help.endswith(".")
    assert len(VERBS[name].help) <= 64


def test_a_verb_is_a_function_or_a_group() -> None:
    for name, verb in VERBS.items():
        module = import_module(verb.module)
        found = [entry for entry in ("app", "command", "main") if hasattr(module, entry)]
        assert found in ([["main"]] if name in QUICK else [["app"], ["command"]]), verb.module
        assert load_verb(name).name == name


@pytest.mark.parametrize(
    "name", ["validate", "plan", "inspect", "graph", "lock", "diff", "export", "train", "evaluate", "ask"]
)
def test_verbs_that_read_a_recipe_take_plugins(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(name, "--help") == 0
    assert "--plugin" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------ wrong words
def test_an_unknown_verb_gets_a_guess(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome("lsit") == 2
    assert "No such command 'lsit'. Did you mean 'list'?" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("list", "--jsn"), ("show", "--jsn", "x"), ("list", "a", "b")])
def test_unknown_words_end_with_2(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(*words) == 2
    assert capsys.readouterr().out == ""


# ----------------------------------------------------------------------------------------------- errors
def test_an_error_is_one_line_without_traceback(verb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    verb(raising(UsageError("give a name")))
    assert outcome("show") == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "error: give a name\n")


def test_every_problem_of_a_recipe_is_a_line(verb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    problems = [Problem("a.yaml", 3, 1, "fusion.pool", "too big", "use 2"), Problem("a.yaml", 2, 5, "name", "missing")]
    verb(raising(PlanError(problems)))
    assert outcome("show") == 2
    assert capsys.readouterr().err == (
        "error: a.yaml:2:5: name: missing\nerror: a.yaml:3:1: fusion.pool: too big (use 2)\n"
    )


def test_traceback_shows_where_it_came_from(verb: Any) -> None:
    verb(raising(UsageError("give a name")))
    with pytest.raises(UsageError, match="give a name"):
        run(["--traceback", "show"])
    with pytest.raises(UsageError, match="unknown family"):
        run(["--traceback", "list", "zzz"])


def test_ctrl_c_ends_with_130(verb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    verb(raising(KeyboardInterrupt()))
    assert outcome("show") == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    ("number", "text"),
    [(errno.EACCES, "Permission denied"), (errno.ENOSPC, "No space left on device"), (errno.EROFS, "Read-only")],
)
def test_the_operating_systems_no_is_one_line(
    verb: Any, capsys: pytest.CaptureFixture[str], number: int, text: str
) -> None:
    verb(raising(OSError(number, text, "runs/a.pt")))
    assert outcome("show") == 2
    assert capsys.readouterr().err == f"error: runs/a.pt: {text}\n"


def test_a_mistake_of_ours_keeps_its_traceback(verb: Any) -> None:
    verb(raising(OSError("no errno")))
    with pytest.raises(OSError, match="no errno"):
        run(["show"])
    verb(raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        run(["show"])


def test_a_reader_who_has_seen_enough_is_no_error() -> None:
    code = "from fusionkit.cli.main import run; run(['list'])"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""


# ------------------------------------------------------------------------------------------------- list
def test_list_shows_name_distribution_version_and_state(capsys: pytest.CaptureFixture[str]) -> None:
    run(["list", "mixer"])
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["FAMILY", "NAME", "DISTRIBUTION", "VERSION", "STATE"]
    assert {row.split()[0] for row in rows} == {"mixers"}
    (row,) = [row for row in rows if row.split()[1] == "orthogonal"]
    assert row.split()[2] == "fusionkit"
    assert row.split()[4] == "ok"


def test_list_shows_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    run(["list", "recipes"])
    assert "recipes  builtin:come_vl " in capsys.readouterr().out
    run(["list"])
    text = capsys.readouterr().out
    assert "encoders " in text
    assert "builtin:come_vl " in text


@pytest.mark.parametrize(
    ("family", "example"), [("mixers", "mixers/channel_concat"), ("recipes", "builtin:come_vl"), (None, "encoders/")]
)
def test_list_tells_people_how_to_go_on(
    family: str | None, example: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["list"] if family is None else ["list", family]
    run(words)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    run(words)
    assert f"`fusionkit show {example}" in capsys.readouterr().err


def test_list_says_what_is_wrong_on_stderr(site: Any, capsys: pytest.CaptureFixture[str]) -> None:
    site.install("acme", entry_points={"fusionkit.mixers": {"orthogonal": "m:X"}})
    run(["list", "mixers"])
    captured = capsys.readouterr()
    assert "reserved-name" in captured.out
    assert captured.err == (
        "mixers/orthogonal of acme 1.0: reserved-name: names without a dot belong to fusionkit; "
        "call it vendor.orthogonal\n"
    )


def test_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    run(["list", "mixers", "--json"])
    data = json.loads(capsys.readouterr().out)
    assert data["recipes"] == []
    assert {
        "family": "mixers",
        "name": "orthogonal",
        "target": "fusionkit.blocks.mixers.specs:ORTHOGONAL",
        "distribution": "fusionkit",
        "state": "ok",
        "reason": "",
    }.items() <= next(block for block in data["blocks"] if block["name"] == "orthogonal").items()


# ----------------------------------------------------------------------------------------------- export
def test_export_prints_a_recipe_that_means_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from fusionkit import load_recipe

    assert outcome("export", "come_vl", "--set", "sequence_length=1024", "--set", "name=mine") == 0
    path = tmp_path / "mine.yaml"
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    expected = load_recipe("builtin:come_vl", set=["sequence_length=1024", "name=mine"])
    assert load_recipe(path).canonical() == expected.canonical()
    assert outcome("export", str(path), "--json") == 0
    assert json.loads(capsys.readouterr().out) == expected.canonical()


# ------------------------------------------------------------------------------------ options and output
@pytest.mark.parametrize(
    ("argument", "source"),
    [
        ("tiny", "builtin:tiny"),
        ("builtin:tiny", "builtin:tiny"),
        ("acme:big", "acme:big"),
        ("recipes/tiny.yaml", "recipes/tiny.yaml"),
        ("./tiny", "./tiny"),
    ],
)
def test_a_bare_name_means_a_shipped_recipe(argument: str, source: str) -> None:
    assert recipe_source(argument) == source


def test_json_takes_what_results_are_made_of(capsys: pytest.CaptureFixture[str]) -> None:
    output.emit_json({"a": (1, float("nan")), "b": Path("x"), "c": {"z", "y"}, "d": Problem("s", 1, 2, "", "m")})
    data = json.loads(capsys.readouterr().out)
    assert data["a"] == [1, None]
    assert data["b"] == "x"
    assert data["c"] == ["y", "z"]
    assert data["d"]["line"] == 1


def test_json_refuses_what_it_cannot_say() -> None:
    with pytest.raises(TypeError, match="object has no JSON form"):
        output.emit_json(object())


def test_tables_align_and_are_not_cut_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("NAME", "N"), [("a", 1), ("b" * 200, 20)], right={"N"})
    assert capsys.readouterr().out.splitlines() == [
        f"{'NAME':<200}   N",
        f"{'a':<200}   1",
        f"{'b' * 200}  20",
    ]


@pytest.mark.parametrize(("value", "needs"), [("0", "greater than or equal to 1"), ("no", "a valid integer")])
def test_bounds_of_options_are_told_in_plain_words(value: str, needs: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome("analyze", "pca", "small_vit", "photos", "-o", "out", "--batch", value) == 2
    assert f"'--batch': must be {needs}" in capsys.readouterr().err
