"""The author's guide does what it says: its files are written out, installed and checked."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import fusionkit
from fusionkit import plugin, registry
from fusionkit.testing import checks_for, collect_checks


@pytest.fixture(scope="module")
def guide(repository: Path) -> str:
    return (repository / "docs" / "plugins.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def snippets(guide: str) -> dict[str, str]:
    """The files of the guide by name, which is their first line."""
    return dict(re.findall(r"```(?:python|toml|yaml)\n# (\S+)\n(.*?)```", guide, re.DOTALL))


def install_vision(snippets: dict[str, str], site: Any) -> None:
    project = tomllib.loads(snippets["pyproject.toml"])["project"]
    modules = {name: text for name, text in snippets.items() if name.startswith("acme_vision/")}
    site.install(project["name"], project["version"], entry_points=project["entry-points"], modules=modules)


def test_the_encoder_passes_the_kit(snippets: dict[str, str], site: Any) -> None:
    install_vision(snippets, site)
    checks = list(collect_checks("acme-vision"))
    assert len(checks) > 20
    for check in checks:
        check()
    assert 'parametrize_with_checks("acme-vision")' in snippets["tests/test_conformance.py"]


@pytest.mark.parametrize("name", ["my_scale", "my_scales"])
def test_a_block_in_one_file_works(
    name: str, snippets: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_files", {})
    file = tmp_path / f"{name}.py"
    file.write_text(snippets[file.name])
    (spec,) = registry.load_plugin_file(file)
    # It imports torch, which a file may and a package's spec may not.
    checks = [check for check in checks_for(spec) if not check.id.endswith("needs_no_heavy_library")]
    for check in checks:
        check()
    del sys.modules[name]


def test_the_recipe_to_try_a_file_in_reads_it(
    snippets: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_files", {})
    for name in ("my_scale.py", "my.yaml"):
        (tmp_path / name).write_text(snippets[name])
    registry.load_plugin_file(tmp_path / "my_scale.py")
    planned = fusionkit.plan(fusionkit.load_recipe(tmp_path / "my.yaml"))
    assert list(planned.recipe.streams["spatial"].steps)[-1] == "scale"
    del sys.modules["my_scale"]


def test_the_pack_of_recipes_is_found_and_uses_the_encoder(snippets: dict[str, str], site: Any) -> None:
    install_vision(snippets, site)
    project = tomllib.loads(snippets["acme_recipes.toml"])["project"]
    modules = {"acme_recipes/__init__.py": "", "acme_recipes/small.yaml": snippets["acme_recipes/small.yaml"]}
    site.install(project["name"], project["version"], entry_points=project["entry-points"], modules=modules)
    planned = fusionkit.plan(fusionkit.load_recipe("acme:small"))
    assert planned.streams["spatial"].encoder.distribution == ("acme-vision", "0.1.0")


def test_the_override_prints_what_it_says(snippets: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, "-c", snippets["override.py"]], capture_output=True, text=True, check=True)
    assert done.stdout == "My variant.\nTrue\n"


def test_the_table_of_versions_is_complete(guide: str) -> None:
    rows = dict(re.findall(r"^\| (\d+) \| (yes|no) \|", guide, re.MULTILINE))
    assert set(rows) == {str(version) for version in range(1, plugin.API_VERSION + 1)}
    assert {int(version) for version, accepted in rows.items() if accepted == "yes"} == set(
        plugin.ACCEPTED_API_VERSIONS
    )
