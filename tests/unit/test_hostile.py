"""With the collection of broken blocks installed everything else behaves as without it, and each is blamed once."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fusionkit import discovery
from fusionkit.cli import plugin_report
from fusionkit.cli.doctor_checks import load_apart
from fusionkit.cli.main import run
from fusionkit.cli.plugin_report import Block

NAME = "fusionkit-hostile"
TOOL = str(Path(sys.executable).with_name("fusionkit"))

BY_METADATA = {
    "selectors/Hostile-Name": "invalid-name",
    "mixers/orthogonal": "reserved-name",
    "mixers/hostile.twice": "conflict",
    "adapters/hostile.twice": "conflict",
    "gadgets/hostile.gadget": "unknown-family",
    "builtin:tiny": "reserved-name",
    "hostile:*": "missing",
}
BY_LOADING = {
    "encoders/hostile.raises": ("broken", "RuntimeError: no such driver"),
    "encoders/hostile.missing": ("broken", "No module named 'fusionkit_hostile.nowhere'"),
    "encoders/hostile.wrong_type": ("broken", "is a int, expected a fusionkit.plugin.BlockSpec"),
    "encoders/hostile.no_attribute": ("broken", "has no attribute 'NOTHING'"),
    "encoders/hostile.old_api": ("broken", "made for plugin API 0; this fusionkit accepts 1 (upgrade the plugin)"),
    "encoders/hostile.new_api": ("broken", "made for plugin API 99; this fusionkit accepts 1 (upgrade fusionkit)"),
    "encoders/hostile.mislabelled": ("broken", "is the spec of encoders/hostile.other"),
    "selectors/hostile.exits": ("broken", "SystemExit: I have seen enough"),
    "selectors/hostile.dies": ("crashed", "exit code 3"),
    "selectors/hostile.prints": ("ok", ""),
    "selectors/hostile.mutates": ("ok", ""),
    "selectors/hostile.no_factory": ("broken", "has no attribute 'Nothing'"),
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """A folder in which the collection is installed, by pip, from its sources."""
    folder = tmp_path_factory.mktemp("hostile")
    shutil.copytree(repository / "plugins" / NAME, folder / "source")
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        *options,
        "--target",
        str(folder / "site"),
        str(folder / "source"),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "site"


@pytest.fixture
def installed(hostile: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The same on this process's path."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(hostile)])
    yield hostile
    assert not [name for name in sys.modules if name.startswith("fusionkit_hostile")]


def command(*words: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": "" if path is None else str(path)}
    return subprocess.run([TOOL, *words], env=environment, capture_output=True, text=True, check=False)


# ------------------------------------------------------------------------------------ nobody else notices
@pytest.mark.parametrize(
    "words",
    [
        ("validate", "tiny"),
        ("plan", "tiny"),
        ("plan", "come_vl", "--json"),
        ("show", "mixer/orthogonal"),
        ("show", "tiny"),
        ("export", "builtin:tiny"),
        ("lock", "tiny", "--json"),
    ],
    ids=lambda words: "-".join(words[:2]),
)
def test_unaffected_recipes_behave_exactly_as_without_it(words: tuple[str, ...], hostile: Path) -> None:
    without, beside = command(*words), command(*words, path=hostile)
    assert without.returncode == 0
    assert (beside.returncode, beside.stdout, beside.stderr) == (0, without.stdout, without.stderr)


def test_list_has_the_same_rows_and_more(hostile: Path) -> None:
    without, beside = (json.loads(command("list", "--json", path=path).stdout) for path in (None, hostile))
    for kind in ("blocks", "recipes"):
        assert [row for row in beside[kind] if row["distribution"] != NAME] == without[kind]
    assert beside["troubles"] == without["troubles"]


def test_training_is_the_same_to_the_bit(hostile: Path, tmp_path: Path) -> None:
    steps = ["--stop-after", "2", "--set", "train.global_batch_size=2"]
    digests = []
    for number, path in enumerate((None, hostile)):
        done = command("train", "tiny", *steps, "-o", str(tmp_path / f"{number}"), path=path)
        assert done.returncode == 0, done.stderr[-2000:]
        (weights,) = tmp_path.glob(f"{number}.partial/**/stage.safetensors")
        digests.append(hashlib.sha256(weights.read_bytes()).hexdigest())
    assert digests[0] == digests[1]


def test_a_block_that_nobody_has_is_not_found_without_loading_any(installed: Path) -> None:
    from fusionkit import registry
    from fusionkit.errors import UnknownBlockError

    with pytest.raises(UnknownBlockError, match=r"no selector called 'hostile\.hang'.* did you mean 'hostile\.hangs'"):
        registry.spec("selectors", "hostile.hang")


# ----------------------------------------------------------------------------------------- blamed, once each
def test_every_entry_is_expected_here(repository: Path) -> None:
    project = tomllib.loads((repository / "plugins" / NAME / "pyproject.toml").read_text())["project"]
    groups = {group.removeprefix("fusionkit."): set(points) for group, points in project["entry-points"].items()}
    groups.pop("recipes")
    found = {f"{family}/{name}" for family, names in groups.items() for name in names}
    expected = {*BY_METADATA, *BY_LOADING, "selectors/hostile.hangs"} - {"builtin:tiny", "hostile:*"}
    assert found == expected


def test_list_blames_each_once_with_its_distribution(hostile: Path) -> None:
    notes = command("list", path=hostile).stderr.splitlines()
    blamed = Counter(note.split(" ")[0] for note in notes)
    assert blamed == dict.fromkeys(BY_METADATA, 1)
    for note in notes:
        address = note.split(" ")[0]
        assert note.startswith(f"{address} of {NAME} 6.6.6: {BY_METADATA[address]}: ")


def test_doctor_contains_what_loading_does(installed: Path) -> None:
    items = [dict(zip(("family", "name"), address.split("/"), strict=True)) for address in BY_LOADING]
    _, results = load_apart(items, look_around=False)
    for (address, (state, words)), result in zip(BY_LOADING.items(), results, strict=True):
        assert result["state"] == state, address
        assert words in result["error"], address


def checked(name: str, limit: float = 100) -> Block:
    (entry,) = [each for each in discovery.scan().blocks if each.distribution == NAME and each.name == name]
    return plugin_report._check(entry, limit)


def test_check_gives_up_on_a_block_that_hangs(installed: Path) -> None:
    block = checked("hostile.hangs", limit=1)
    assert block.state == "timeout"
    assert block.error.startswith("not done within 1 s, it was loading the block (File ")
    assert "hangs.py" in block.error


def test_check_remarks_what_loading_prints_and_changes(installed: Path) -> None:
    prints, mutates = checked("hostile.prints"), checked("hostile.mutates")
    assert prints.state == mutates.state == "failed"
    assert prints.remarks == ("loading it prints 46 bytes to stdout, where they mix with results",)
    assert [remark.removeprefix("loading it changes ") for remark in mutates.remarks] == [
        "torch's default dtype",
        "torch's random state",
        "numpy's random state",
        "Python's random state",
    ]
    assert not prints.failures


def test_check_survives_the_end_of_the_process(installed: Path) -> None:
    block = checked("hostile.dies")
    assert (block.state, block.error) == ("crashed", "loading the block ended the process (exit code 3)")


# --------------------------------------------------------------------------------------------- plugin check
def outcome(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        run(words)
    return int(ended.value.code or 0)


def test_check_reports_a_distribution(site: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from fusionkit.cli.plugin_package import files, from_template

    draft = from_template("vend.good", "selectors")
    modules = {path: text for path, text in files(draft, "none", "").items() if path.startswith("vend_good/")}
    bad = modules["vend_good/block.py"].replace("sorted(", "(")
    spec = modules["vend_good/spec.py"].replace("vend.good", "vend.bad").replace("vend_good.block", "vend_good.bad")
    points = {"vend.good": "vend_good.spec:GOOD", "vend.bad": "vend_good.bad_spec:GOOD"}
    more = {"vend_good/bad.py": bad, "vend_good/bad_spec.py": spec}
    site.install("vend-good", entry_points={"fusionkit.selectors": points}, modules={**modules, **more})
    assert outcome("plugin", "check", "Vend_Good") == 1
    printed = capsys.readouterr().out
    assert printed.startswith("vend-good 1.0\n  selectors/vend.bad: FAILED (failed), ")
    assert "      [0]-layers_are_sorted_and_there: layers must be sorted and unique, got (2, 1)" not in printed
    assert "[0]-layers_are_sorted_and_there: layers must be sorted and unique, got (3, 1)" in printed
    assert "selectors/vend.good: ok, 10 of 10 checks hold, " in printed
    assert printed.endswith("1 of 2 blocks keep their contract.\n")


def test_check_as_json_says_the_same(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = plugin_report.Report("a", "1", (Block("selectors/a.b", "ok", 1.0, "", (plugin_report.Finding("c", ""),)),))
    monkeypatch.setattr(plugin_report, "examine", lambda distribution, limit, progress: found)
    assert outcome("plugin", "check", "a", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["blocks"][0]["checks"] == [{"check": "c", "error": ""}]


def test_check_of_what_is_not_installed(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome("plugin", "check", "no-such-thing") == 2
    assert "no installed distribution 'no-such-thing' brings blocks; there are fusionkit" in capsys.readouterr().err
