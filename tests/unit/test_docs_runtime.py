"""docs/runtime.md prints what it says, names every field with its default, and its commands are ones the bench takes."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from fusionkit.cli.main import run
from fusionkit.model.runtime import Runtime


@pytest.fixture(scope="module")
def guide(repository: Path) -> str:
    return (repository / "docs" / "runtime.md").read_text(encoding="utf-8")


def test_every_snippet_prints_what_stands_below_it(guide: str) -> None:
    pairs = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", guide, re.DOTALL)
    assert len(pairs) == guide.count("```python") == 2
    names: dict[str, Any] = {}
    for code, expected in pairs:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        assert printed.getvalue() == expected


def test_the_table_names_every_field_and_default(guide: str) -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", guide, re.MULTILINE))
    assert list(rows) == list(Runtime.model_fields)
    for name, shown in rows.items():
        default = Runtime.model_fields[name].default
        assert default is None or shown.strip("`") == str(default), name


def test_the_commands_are_understood(
    guide: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a CUDA device they end with that, and nothing else, as the reason."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    commands = re.findall(r"^    fusionkit (bench .*)$", guide, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        monkeypatch.setattr("sys.argv", ["fusionkit", *shlex.split(command)])
        with pytest.raises(SystemExit) as ended:
            run()
        assert ended.value.code == 2
        assert "--device cuda: torch finds no CUDA device here" in capsys.readouterr().err
