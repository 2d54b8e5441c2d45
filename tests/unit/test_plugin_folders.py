"""Every distribution under plugins/ is one that a stranger could have written, installed and tested."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from fusionkit import discovery

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = sorted(
    file.parent for file in ROOT.glob("plugins/*/pyproject.toml") if file.parent.name != "fusionkit-hostile"
)
CORE = {"fusionkit", "timm", "torch"}
"""What the constraints pin for fusionkit itself."""
NEEDS_MORE = {"fusionkit-real-small"}
"""Reaches further than a plugin has to: its command caches features of whole recipes."""

folders = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


def project(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    return found


def test_there_are_some_of_every_kind() -> None:
    groups = {group for folder in FOLDERS for group in project(folder)["entry-points"]}
    assert {"fusionkit.encoders", "fusionkit.connectors", "fusionkit.recipes"} <= groups


@folders
def test_it_says_what_it_is_and_under_which_licence(folder: Path) -> None:
    about = project(folder)
    assert about["name"] == folder.name
    assert about["license"] == "Apache-2.0"
    readme = (folder / about["readme"]).read_text()
    assert readme.startswith(f"# {folder.name}\n")
    assert "icence" in readme


@folders
def test_its_blocks_have_names_of_vendors(folder: Path) -> None:
    for group, points in project(folder)["entry-points"].items():
        if group != "fusionkit.recipes":
            assert all(discovery.is_vendor_name(name) for name in points)


@folders
def test_it_has_tests_and_those_of_blocks_run_the_kit(folder: Path) -> None:
    tests = {file.name: file.read_text() for file in (folder / "tests").glob("test_*.py")}
    assert tests
    if set(project(folder)["entry-points"]) != {"fusionkit.recipes"}:
        assert "parametrize_with_checks" in tests["test_conformance.py"]


@folders
def test_what_it_needs_is_pinned_for_ci(folder: Path) -> None:
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    for requirement in project(folder)["dependencies"]:
        name = re.split(r"[<>=~!\[ ]", requirement)[0]
        assert name in CORE or name.lower() in pinned or (ROOT / "plugins" / name).is_dir(), requirement


@pytest.mark.parametrize(
    "folder", [folder for folder in FOLDERS if folder.name not in NEEDS_MORE], ids=lambda folder: folder.name
)
def test_its_blocks_need_no_more_of_fusionkit_than_the_plugin_contract(folder: Path) -> None:
    package = folder / folder.name.replace("-", "_")
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            ours = {name for name in names if name.split(".")[0] == "fusionkit"}
            assert ours <= {"fusionkit.plugin", "fusionkit.testing"}, f"{file.name} imports {ours}"
