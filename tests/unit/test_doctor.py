"""`fusionkit doctor`: whatever a block does while it loads, the others are still looked at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fusionkit import discovery
from fusionkit.cli import doctor, doctor_checks, doctor_worker
from fusionkit.cli.doctor_checks import Check, Report, load_apart
from fusionkit.cli.main import run

SPEC = """
from typing import Literal
from fusionkit.plugin import BlockPlan, BlockSpec, StepConfig

class Config(StepConfig):
    type: Literal["{name}"] = "{name}"

SPEC = BlockSpec(
    api=1, family="adapters", config=Config, plan=lambda *_: None, factory="{factory}", summary="A test block."
)
"""


def install(site: Any, **blocks: str) -> list[dict[str, str]]:
    """A distribution with one module per block, which holds a good spec after the text given. Returns the items."""
    site.install(
        "acme",
        entry_points={"fusionkit.adapters": {f"acme.{name}": f"acme_{name}:SPEC" for name in blocks}},
        modules={
            f"acme_{name}.py": f"{text}\n" + SPEC.format(name=f"acme.{name}", factory="builtins:list")
            for name, text in blocks.items()
        },
    )
    return [{"family": "adapters", "name": f"acme.{name}"} for name in blocks]


# -------------------------------------------------------------------------------------------- isolation
def test_a_broken_and_a_crashing_block_leave_the_others_alone(site: Any) -> None:
    items = install(
        site,
        good="print('noise on stdout')",
        broken="x = 1\nimport acme_nowhere",
        crashing="import os, sys\nprint('last words', file=sys.stderr, flush=True)\nos._exit(7)",
        after="",
    )
    environment, results = load_apart(items, look_around=True)
    good, broken, crashing, after = results
    assert environment["torch"]
    assert good["state"] == after["state"] == "ok"
    assert good["seconds"] >= 0
    assert broken["state"] == "broken"
    assert broken["error"] == "ModuleNotFoundError: No module named 'acme_nowhere'"
    assert broken["frame"] == f"{site.folder / 'acme_broken.py'}:2 in <module>"
    assert crashing["state"] == "crashed"
    assert crashing["error"] == "loading it ended the process (exit code 7); it said: last words"


def test_a_signal_is_named(site: Any) -> None:
    (result,) = load_apart(install(site, bad="import os\nos.kill(os.getpid(), 11)"), look_around=False)[1]
    assert result == {"state": "crashed", "error": "loading it ended the process (signal 11)"}


def test_a_block_that_hangs_is_given_up(site: Any) -> None:
    (result,) = load_apart(install(site, slow="import time\ntime.sleep(60)"), look_around=False, limit=4)[1]
    assert result == {"state": "timeout", "error": "did not load within 4 s"}


def test_a_worker_that_cannot_start_blames_what_it_was_to_load(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_checks.sys, "executable", "/bin/false")
    items = install(site, a="", b="")
    _, results = load_apart(items, look_around=False)
    assert [result["state"] for result in results] == ["crashed", "crashed"]


# ------------------------------------------------------------------------------------------- one block
def test_a_spec_that_is_fine_with_a_factory_that_is_not(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from fusionkit import registry

    monkeypatch.setattr(registry, "_loaded", {})
    site.install(
        "acme",
        entry_points={"fusionkit.adapters": {"acme.x": "acme_x:SPEC"}},
        modules={"acme_x.py": SPEC.format(name="acme.x", factory="acme_absent:Block")},
    )
    result = doctor_worker.load({"family": "adapters", "name": "acme.x"})
    assert result["state"] == "broken"
    assert result["error"] == "ModuleNotFoundError: No module named 'acme_absent'"


def test_a_plugin_file_is_looked_at_with_its_factories(
    site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fusionkit import registry

    monkeypatch.setattr(registry, "_files", {})
    path = tmp_path / "my_doctor_block.py"
    path.write_text(SPEC.format(name="my.block", factory="my_doctor_block:absent"))
    result = doctor_worker.load({"plugin": str(path)})
    assert result["state"] == "broken"
    assert "has no attribute 'absent'" in result["error"]


# ------------------------------------------------------------------------------------------- the report
def report(*checks: Check, **more: Any) -> Report:
    environment = {
        "torch": "2.0",
        "seconds": 1.0,
        "threads": 1,
        "cuda": [],
        "no_cuda": "this torch is built without CUDA",
        "mps": False,
        "attention": {"sdpa": "", "xformers": "the package xformers is not installed"},
    }
    return Report("0.1", "3.11", "python", "Linux", {"torch": "2.0"}, environment, checks, (), **more)


GOOD = Check("mixers/a.good", "a", "1", "ok", 0.01)
BROKEN = Check("mixers/a.bad", "a", "1", "broken", 0.02, "ImportError: no", "a.py:3 in <module>")


def test_the_report_shows_reasons_and_last_frames(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor_checks, "examine", lambda plugins, progress, limit: report(GOOD, BROKEN))
    with pytest.raises(SystemExit) as ended:
        run(["doctor"])
    assert ended.value.code == 1
    text = capsys.readouterr().out
    assert "CUDA       none: this torch is built without CUDA" in text
    assert "attention  sdpa: yes" in text
    assert "xformers: the package xformers is not installed" in text
    assert "  mixers/a.bad of a 1: broken\n      ImportError: no\n      at a.py:3 in <module>\n" in text
    assert text.endswith("1 of 2 blocks load. Something is broken.\n")


def test_all_well_is_exit_code_0_and_json_holds_everything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor_checks, "examine", lambda plugins, progress, limit: report(GOOD))
    with pytest.raises(SystemExit) as ended:
        run(["doctor", "--json"])
    assert ended.value.code == 0
    data = json.loads(capsys.readouterr().out)
    assert data["checks"][0]["state"] == "ok"
    assert data["environment"]["attention"]["sdpa"] == ""


@pytest.mark.parametrize(
    ("state", "healthy"),
    [("ok", True), ("blocked", True), ("broken", False), ("conflict", False), ("reserved-name", False)],
)
def test_what_counts_as_broken(state: str, healthy: bool) -> None:
    assert report(Check("mixers/a.x", "a", "1", state)).is_healthy is healthy


def test_names_that_cannot_be_used_are_in_the_report(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    site.install("acme", entry_points={"fusionkit.mixers": {"orthogonal": "m:X"}})
    monkeypatch.setattr(
        doctor_checks,
        "load_apart",
        lambda items, look_around, limit: ({"torch": "2.0"}, [{"state": "ok"} for _ in items]),
    )
    said: list[str] = []
    seen = doctor_checks.examine((), said.append, 9)
    assert [check.state for check in seen.checks if check.distribution == "acme"] == ["reserved-name"]
    assert not seen.is_healthy
    assert said[0].startswith("loading ")
    assert doctor.command.__doc__


def test_a_hang_costs_no_more_than_the_limit_given(
    site: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    items = install(site, slow="import time\ntime.sleep(600)")
    entries = tuple(entry for entry in discovery.scan().blocks if entry.distribution == "acme")
    monkeypatch.setattr(discovery, "scan", lambda: discovery.Scan(entries, (), ()))
    with pytest.raises(SystemExit) as ended:
        run(["doctor", "--json", "--limit", "4"])
    assert ended.value.code == 1
    (check,) = json.loads(capsys.readouterr().out)["checks"]
    assert (check["address"], check["state"]) == (f"adapters/{items[0]['name']}", "timeout")
    assert check["error"] == "did not load within 4 s"
