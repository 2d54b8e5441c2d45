"""Installed metadata is what pyproject.toml says: entry points change only when the package is installed again."""

from __future__ import annotations

import tomllib
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from fusionkit import discovery, registry
from fusionkit.plugin import FAMILIES

REINSTALL = "pyproject.toml has changed since fusionkit was installed: run `pip install --no-deps -e .` again"


@pytest.fixture(scope="module")
def project(repository: Path) -> dict[str, Any]:
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_installed_entry_points_are_those_of_the_project(project: dict[str, Any]) -> None:
    written = {
        (group, name, target) for group, points in project["entry-points"].items() for name, target in points.items()
    }
    written |= {("console_scripts", name, target) for name, target in project["scripts"].items()}
    installed = {(point.group, point.name, point.value) for point in metadata.distribution("fusionkit").entry_points}
    assert installed == written, REINSTALL


def test_the_installed_version_is_that_of_the_project(project: dict[str, Any]) -> None:
    assert metadata.version("fusionkit") == project["version"], REINSTALL


def test_groups_are_families_or_recipes(project: dict[str, Any]) -> None:
    groups = {group.removeprefix(discovery.PREFIX) for group in project["entry-points"]}
    assert groups == {*FAMILIES, discovery.RECIPES}


def test_every_built_in_can_be_used_by_name() -> None:
    own = [entry for entry in discovery.scan().blocks if entry.distribution == discovery.OWNER]
    assert [entry.address for entry in own if entry.state != "ok"] == []


BUILT_IN = [entry for entry in discovery.scan().blocks if entry.distribution == discovery.OWNER]


@pytest.mark.parametrize("entry", BUILT_IN, ids=lambda entry: entry.address)
def test_every_entry_point_leads_to_its_spec_and_the_spec_to_a_module(entry: discovery.Entry) -> None:
    spec = registry.spec(entry.family, entry.name)
    module, _, attribute = spec.factory.partition(":")
    assert find_spec(module) is not None, f"{entry.address}: factory module {module} does not exist"
    assert attribute
    assert spec.summary.endswith(".")
    assert all(info.description for info in list(spec.config.model_fields.values())[1:])


def test_the_shipped_recipes_are_found() -> None:
    names = {recipe.address for recipe in discovery.recipes() if recipe.distribution == discovery.OWNER}
    assert {"builtin:tiny", "builtin:come_vl"} <= names
