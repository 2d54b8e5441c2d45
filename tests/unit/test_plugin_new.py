"""`fusionkit plugin new`: what it writes is complete and passes its own tests from the start."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from fusionkit import registry
from fusionkit.cli.main import run
from fusionkit.cli.plugin_package import LICENCES, USAGE
from fusionkit.plugin import FAMILIES
from fusionkit.testing import collect_checks

ONE_FILE = '''
"""A block in one file."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from fusionkit.plugin import BlockPlan, BlockSpec, StepConfig, Tokens

# How wide the inner layer is, over the outer.
RATIO = 2


class DampConfig(StepConfig):
    type: Literal["acme.damp"] = "acme.damp"
    start: float = Field(0.5, description="Factor at the start.")


def plan(config, inputs, target):
    tokens = inputs["input"]
    return BlockPlan.of(tokens, params=RATIO * tokens.width, reads=[tokens])


# Everything below needs torch.
def ones(width: int, start: float) -> torch.Tensor:
    return torch.full((RATIO, width), start)


class Damp(nn.Module):
    def __init__(self, config: DampConfig, site) -> None:
        super().__init__()
        self.factors = nn.Parameter(ones(site.tokens().width, config.start))

    def forward(self, tokens: Tokens) -> Tokens:
        return tokens.with_x(tokens.x_BND * self.factors.sum(0))


DAMP = BlockSpec(
    api=1, family="adapters", config=DampConfig, plan=plan, factory="FILE:Damp", summary="Scales every channel."
)
'''


def create(folder: Path, *words: str) -> Path:
    run_well("plugin", "new", *words, "-o", str(folder))
    return folder


def run_well(*words: str) -> None:
    with pytest.raises(SystemExit) as ended:
        run(words)
    assert ended.value.code in (0, None)


def install(site: Any, folder: Path) -> dict[str, Any]:
    """Put a written package on the path, with the metadata that installing it would write; returns its project."""
    project: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text())
    (package,) = project["tool"]["setuptools"]["packages"]
    files = {f"{package}/{file.name}": file.read_text() for file in (folder / package).iterdir()}
    site.install(
        project["project"]["name"],
        project["project"]["version"],
        entry_points=project["project"]["entry-points"],
        modules=files,
    )
    return project["project"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_passes_its_own_tests(family: str, tmp_path: Path, site: Any) -> None:
    name = f"vend.my_{family.removesuffix('s')}"
    folder = create(tmp_path / "written", name, "--family", family)
    project = install(site, folder)
    checks = list(collect_checks(project["name"]))
    assert len(checks) >= 5
    for check in checks:
        assert check.id.startswith(f"{family}/{name}[")
        check()


def test_pytest_in_the_package_runs_the_kit(tmp_path: Path, site: Any) -> None:
    folder = create(tmp_path / "written", "vend.odd_layers", "--family", "selector")
    install(site, folder)
    environment = {"PYTHONPATH": str(site.folder), "PATH": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rA"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_conformance[selectors/vend.odd_layers[0]-layers_are_sorted_and_there]" in done.stdout


def test_the_written_code_is_in_the_house_style(tmp_path: Path) -> None:
    for family in FAMILIES:
        create(tmp_path / family, f"vend.{family}", "--family", family)
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--line-length=120", "--ignore=E501", str(tmp_path)]
    rules = "--select=E,F,W,I,B,UP,C4,SIM,RUF"
    done = subprocess.run([*command, rules], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_family_has_a_template_and_a_place_in_recipes() -> None:
    assert set(USAGE) == set(FAMILIES)


@pytest.mark.parametrize("licence", LICENCES)
def test_licences(licence: str, tmp_path: Path) -> None:
    folder = create(tmp_path / "p", "vend.x", "--family", "metric", "--licence", licence, "--author", "Ann Author")
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project.get("license", "") == LICENCES[licence]
    if licence == "none":
        assert not (folder / "LICENSE").exists()
        assert "choose one before you publish" in (folder / "README.md").read_text()
    else:
        assert len((folder / "LICENSE").read_text()) > 900
    if licence in ("mit", "bsd-3-clause"):
        assert "Ann Author" in (folder / "LICENSE").read_text()


# ---------------------------------------------------------------------------------------------- refusals
def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        run(["plugin", "new", *words])
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("name", ["sam2", "Acme.sam2", "acme.sam-2", "acme.", ".x", "a.b.c", "acme.2x", "../x.y"])
def test_names_that_plugins_cannot_have(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, name, "--family", "encoder", "-o", str(tmp_path / "p"))
    assert f"'{name}' is not vendor.name" in error
    assert not (tmp_path / "p").exists()


def test_our_vendor_name_and_installed_packages_are_not_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "use your own" in refused(capsys, "fusionkit.x", "--family", "mixer", "-o", str(tmp_path / "p"))
    error = refused(capsys, "typing.extensions", "--family", "mixer", "-o", str(tmp_path / "p"))
    assert "the Python package 'typing_extensions', which is installed here" in error


def test_an_existing_folder_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "file").write_text("mine")
    for there in ("p", "file"):
        error = refused(capsys, "vend.x", "--family", "mixer", "-o", str(tmp_path / there))
        assert "exists already and is left as it is" in error
    assert list((tmp_path / "p").iterdir()) == []
    assert (tmp_path / "file").read_text() == "mine"


def test_an_unknown_family_or_licence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "p")
    assert "did you mean 'encoder'" in refused(capsys, "vend.x", "--family", "encodr", "-o", folder)
    error = refused(capsys, "vend.x", "--family", "encoder", "--licence", "gpl", "-o", folder)
    assert "expected one of apache-2.0, mit, bsd-3-clause, none" in error
    assert "give a name and its --family" in refused(capsys, "vend.x", "-o", folder)
    assert not Path(folder).exists()


# ---------------------------------------------------------------------------------------------- from a file
@pytest.fixture
def one_file(tmp_path: Path) -> Any:
    before = dict(registry._files)
    path = tmp_path / "damp_block_file.py"
    path.write_text(ONE_FILE.replace("FILE", path.stem))
    yield path
    registry._files.clear()
    registry._files.update(before)
    sys.modules.pop(path.stem, None)


def test_a_file_becomes_a_package(one_file: Path, tmp_path: Path, site: Any) -> None:
    folder = create(tmp_path / "written", "--from", str(one_file))
    project = install(site, folder)
    assert project["name"] == "acme-damp"
    assert project["entry-points"] == {"fusionkit.adapters": {"acme.damp": "acme_damp.spec:DAMP"}}
    spec, block = ((folder / "acme_damp" / f"{stem}.py").read_text() for stem in ("spec", "block"))
    assert "# How wide the inner layer is, over the outer.\nRATIO = 2\n" in spec
    assert "torch" not in spec
    assert 'factory="acme_damp.block:Damp"' in spec
    assert "from acme_damp.spec import RATIO, DampConfig\n" in block
    assert "from fusionkit.plugin import Tokens\n" in block
    assert "# Everything below needs torch.\ndef ones" in block
    registry._files.clear()
    registry._snapshot = None  # what a new process would read
    wanted = ("plan_equals_forward", "parameter_count", "spec_needs_no_heavy_library")
    checks = [check for check in collect_checks("acme-damp") if check.id.endswith(wanted)]
    assert len(checks) == len(wanted)
    for check in checks:
        check()


def test_a_spec_that_needs_torch_cannot_be_separated(
    one_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one_file.write_text(
        one_file.read_text().replace('factory="damp_block_file:Damp"', "factory=Damp.__module__ + ':Damp'")
    )
    error = refused(capsys, "--from", str(one_file), "-o", str(tmp_path / "p"))
    assert "DAMP (adapters/acme.damp) uses something that imports a library" in error
    assert not (tmp_path / "p").exists()
