"""The verbs that read recipes without building them: validate, schema, lock, diff, export."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import exit_code

from fusionkit import registry
from fusionkit.recipe import load_recipe
from fusionkit.recipe.lock import lock, unlock

BASE = "extends: builtin:come_vl\nname: mine\n"
PLUGIN = """
from typing import Literal
from pydantic import Field
from fusionkit.plugin import BlockPlan, BlockSpec, StepConfig

class ShiftConfig(StepConfig):
    type: Literal["my.shift"] = "my.shift"
    amount: int = Field(1, description="How far.")

SHIFT = BlockSpec(
    api=1, family="adapters", config=ShiftConfig, factory="my_shift:Shift", summary="Shifts.",
    plan=lambda config, inputs, target: BlockPlan.of(inputs["input"]),
)
"""


@pytest.fixture(autouse=True)
def _forget_plugin_files(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Blocks of `--plugin` files stay for the process; here, for the test."""
    before = set(sys.modules)
    monkeypatch.setattr(registry, "_files", {})
    yield
    for name in set(sys.modules) - before:
        if name.startswith("my_shift"):
            del sys.modules[name]


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(BASE)
    return path


# ----------------------------------------------------------------------------------------------------- validate
def test_validate_counts_what_is_valid(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("validate", mine, "molmo") == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{mine}: valid, 2 streams, 18 blocks",
        "molmo: valid, 1 stream, 14 blocks",
    ]


def test_validate_prints_all_problems_of_all_recipes(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = mine.with_name("wrong.yaml")
    wrong.write_text(BASE + "fusion:\n  align: {haeds: 8}\n  pool: {window: 2}\n")
    broken = mine.with_name("broken.yaml")
    broken.write_text("a: [1\n")
    assert exit_code("validate", wrong, mine, broken) == 2
    printed = capsys.readouterr()
    assert printed.out == f"{mine}: valid, 2 streams, 18 blocks\n"
    assert printed.err.splitlines() == [
        f"error: {wrong}:4:11: fusion.align.haeds: unknown key (did you mean 'heads'?)",
        f"error: {wrong}:5:10: fusion.pool.window: must be a list, got 2 (write [2])",
        f"error: {broken}:2:1: expected ',' or ']' (is the list closed?)",
    ]


def test_validate_prints_json(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("validate", mine, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "valid": True,
        "recipes": [
            {"recipe": str(mine), "valid": True, "problems": [], "streams": 2, "blocks": 18, "unnamed_requirements": []}
        ],
    }
    assert exit_code("validate", mine, "--json", "--set", "sequence_length=0") == 2
    [result] = json.loads(capsys.readouterr().out)["recipes"]
    [problem] = result["problems"]
    assert (problem["address"], problem["source"]) == ("sequence_length", "--set sequence_length=0")


def test_validate_knows_the_blocks_of_a_plugin_file(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine.write_text(BASE + "fusion:\n  shift: {type: my.shift, amount: 2}\n")
    assert exit_code("validate", mine) == 2
    assert "no step called 'my.shift' is installed" in capsys.readouterr().err
    plugin = mine.with_name("my_shift.py")
    plugin.write_text(PLUGIN)
    assert exit_code("validate", mine, "--plugin", plugin) == 0


def test_validate_asks_for_the_plugins_that_are_used(mine: Path, site: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from fusionkit.cli.plugin_package import files, from_template

    modules = files(from_template("vend.scale", "adapters"), "none", "")
    points = {"fusionkit.adapters": {"vend.scale": "vend_scale.spec:SCALE"}}
    site.install("vend-scale", "1.2.3", entry_points=points, modules=modules)
    mine.write_text(BASE + "fusion:\n  scale: {type: vend.scale}\n")
    assert exit_code("validate", mine) == 0
    assert capsys.readouterr().err == (
        f'note: {mine} uses plugins that it does not name; add `requires: ["vend-scale>=1.2"]`, '
        "and whoever lacks one is told what to install\n"
    )
    mine.write_text(BASE + 'requires: ["Vend_Scale>=1"]\nfusion:\n  scale: {type: vend.scale}\n')
    assert exit_code("validate", mine) == 0
    assert capsys.readouterr().err == ""


def test_validate_needs_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("validate") == 2
    assert "RECIPE" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------- diff
def test_diff_of_a_recipe_with_itself_is_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("diff", "come_vl", "come_vl") == 0
    assert capsys.readouterr().out == "the same\n"


def test_diff_shows_blocks_shapes_and_totals(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("diff", "come_vl", "come_vl_pooled_first") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["streams.semantic.steps.pool", "added", "-", "attention_pool"] in rows
    assert ["fusion.pool", "removed", "attention_pool", "-"] in rows
    assert ["visual", "tokens", "of", "one", "crop", "144", "144", "1.000"] in rows


def test_diff_changes_the_second_recipe_only_and_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("diff", "come_vl", "come_vl", "--set", "fusion.align.heads=18", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["changes"] == [{"address": "fusion.align.heads", "kind": "changed", "before": 9, "after": 18}]
    assert not found["equal"]


def test_diff_of_what_cannot_be_planned_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("diff", "come_vl", "come_vl", "--set", "fusion.align.heads=7") == 0
    printed = capsys.readouterr()
    assert "fusion.align.heads" in printed.out
    assert printed.err.startswith("shapes and costs are left out: --set fusion.align.heads=7: fusion.align.heads: ")


# --------------------------------------------------------------------------------------------------------- lock
def test_lock_writes_what_it_prints_and_check_accepts_it(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = mine.with_name("mine.lock.json")
    assert exit_code("lock", mine, "-o", file) == 0
    assert exit_code("lock", mine, "--json") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == json.loads(file.read_text()) == lock(load_recipe(mine))
    assert printed.err == f"wrote {file}\n"
    assert load_recipe(unlock(json.loads(file.read_text()))) == load_recipe(mine)
    assert exit_code("lock", mine, "--check", file) == 0
    assert exit_code("lock", mine, "--check", file, "--set", "fusion.align.heads=3") == 2
    assert "fusion.align.heads: 3 here, 9 in the lock" in capsys.readouterr().err


def test_lock_in_short_names_hash_and_versions(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("lock", "come_vl") == 0
    text = capsys.readouterr().out
    assert "model        sha256:" in text
    assert "torch " in text


def test_lock_check_takes_a_checkpoint_folder_and_reports_other_versions(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    locked = lock(load_recipe(mine))
    locked["environment"]["distributions"]["torch"] = "1.0"
    (tmp_path / "lock.json").write_text(json.dumps(locked))
    assert exit_code("lock", mine, "--check", tmp_path) == 0
    assert "distributions.torch: 1.0 then, " in capsys.readouterr().out
    assert exit_code("lock", mine, "--check", tmp_path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["equal"] is True


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no readable lock"),
        ("{", "not JSON"),
        ("[]", "not a lock"),
        ("{}", "x.json: not a lock (make one"),
        ("\xff", "not JSON"),
    ],
)
def test_what_is_no_lock_is_a_clear_error(
    mine: Path, text: str | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = mine.with_name("x.json")
    if text is not None:
        file.write_bytes(text.encode("latin-1"))
    assert exit_code("lock", mine, "--check", file) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error


def test_a_lock_that_cannot_be_written_leaves_nothing(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = mine.with_name("nowhere") / "x.json"
    assert exit_code("lock", mine, "-o", file) == 2
    assert capsys.readouterr().err == f"error: {file}: cannot be written: No such file or directory\n"


def test_a_full_disk_leaves_the_old_file(
    mine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = mine.with_name("x.json")
    file.write_text("old")

    def full(path: Path, *arguments: Any, **options: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_text", full)
    assert exit_code("lock", mine, "-o", file) == 2
    assert capsys.readouterr().err == f"error: {file}: cannot be written: No space left on device\n"
    assert file.read_text() == "old"
    assert sorted(path.name for path in file.parent.iterdir()) == ["mine.yaml", "x.json"]


# ------------------------------------------------------------------------------------------------------- schema
def test_schema_has_every_installed_block_and_those_of_plugin_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "my_shift_too.py"
    plugin.write_text(PLUGIN.replace("my.shift", "my.shift_too").replace("my_shift:", "my_shift_too:"))
    assert exit_code("schema", "--plugin", plugin) == 0
    definitions = json.loads(capsys.readouterr().out)["$defs"]
    assert "adapters.my.shift_too" in definitions
    assert definitions["mixers.orthogonal"]["properties"]["type"]["const"] == "orthogonal"
    assert {"$ref": "#/$defs/mixers.orthogonal"} in definitions["step"]["oneOf"]
    file = tmp_path / "schema.json"
    assert exit_code("schema", "-o", file) == 0
    assert "mixers.orthogonal" in json.loads(file.read_text())["$defs"]


# ------------------------------------------------------------------------------------------------------- export
def test_export_follows_extends_and_reads_back(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("export", mine) == 0
    text = capsys.readouterr().out
    again = mine.with_name("again.yaml")
    again.write_text(text)
    assert "extends" not in text
    assert load_recipe(again) == load_recipe(mine)
