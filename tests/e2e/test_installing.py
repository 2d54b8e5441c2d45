"""Discovery sees what pip does: wheels, editable installs, several versions on the path, and what is gone again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

import pytest

from fusionkit.cli.plugin_package import files, from_template, write

NAME, BLOCK = "vend-scale", "vend.scale"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
OFFLINE = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation"]


class Environment:
    """A virtual environment of its own that reads everything but the plugin from the development one."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False)
        self.python = folder / "bin" / "python"
        (where,) = folder.glob("lib/python*/site-packages")
        (where / "development.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")

    def pip(self, *words: str | Path) -> None:
        run([*PIP, "--python", str(self.python), *map(str, words)])

    def fusionkit(self, *words: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": "" if path is None else str(path)}
        command = [str(self.python), "-m", "fusionkit", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)

    def rows(self, **options: Any) -> list[tuple[str, str]]:
        """Version and state of every row that `list` has for the block."""
        done = self.fusionkit("list", "adapters", "--json", **options)
        assert done.returncode == 0, done.stderr
        return [(row["version"], row["state"]) for row in json.loads(done.stdout)["blocks"] if row["name"] == BLOCK]


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("environment"))


def source(folder: Path, version: str = "0.1.0") -> Path:
    """The package as `plugin new` writes it, with a version."""
    written = files(from_template(BLOCK, "adapters"), "none", "")
    written["pyproject.toml"] = written["pyproject.toml"].replace('version = "0.1.0"', f'version = "{version}"')
    write(folder, written)
    return folder


def test_a_wheel_is_found_and_gone_again(environment: Environment, tmp_path: Path) -> None:
    run([*PIP, "wheel", *OFFLINE, "--wheel-dir", str(tmp_path), str(source(tmp_path / "scale"))])
    assert environment.rows() == []
    environment.pip("install", *OFFLINE, next(tmp_path.glob("*.whl")))
    assert environment.rows() == [("0.1.0", "ok")]
    assert "Guarantees" in environment.fusionkit("show", BLOCK).stdout
    environment.pip("uninstall", "--quiet", "--yes", NAME)
    assert environment.rows() == []
    assert f"called '{BLOCK}' is installed" in environment.fusionkit("show", BLOCK).stderr


def test_an_editable_install_follows_its_sources(environment: Environment, tmp_path: Path) -> None:
    folder = source(tmp_path / "scale")
    environment.pip("install", *OFFLINE, "--editable", folder)
    assert environment.rows() == [("0.1.0", "ok")]
    spec = folder / "vend_scale" / "spec.py"
    (line,) = [line for line in spec.read_text().splitlines() if line.startswith("    summary=")]
    for summary in ("First words.", "Other, longer words."):
        spec.write_text(spec.read_text().replace(line, f'    summary="{summary}",'))
        line = f'    summary="{summary}",'
        assert summary in environment.fusionkit("show", BLOCK).stdout
    environment.pip("uninstall", "--quiet", "--yes", NAME)


def test_of_several_versions_the_first_on_the_path_counts(environment: Environment, tmp_path: Path) -> None:
    environment.pip("install", *OFFLINE, source(tmp_path / "old"))
    newer = tmp_path / "newer"
    run([*PIP, "install", *OFFLINE, "--target", str(newer), str(source(tmp_path / "new", "0.2.0"))])
    try:
        assert environment.rows() == [("0.1.0", "ok")]
        assert environment.rows(path=newer) == [("0.2.0", "ok")]
        said = environment.fusionkit("list", path=newer).stderr
        assert said == f"{NAME}: 0.1.0 is on the path too, hidden by 0.2.0, which comes first\n"
        recipe = tmp_path / "needs.yaml"
        recipe.write_text(f'schema: 1\nextends: builtin:tiny\nname: needs\nrequires: ["{NAME}>=0.2"]\n')
        assert environment.fusionkit("validate", str(recipe), path=newer).returncode == 0
        refused = environment.fusionkit("validate", str(recipe))
        assert refused.returncode == 2
        assert f'{NAME}>=0.2 is needed, 0.1.0 is installed (pip install --upgrade "{NAME}>=0.2")' in refused.stderr
    finally:
        environment.pip("uninstall", "--quiet", "--yes", NAME)
