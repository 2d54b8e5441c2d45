"""The public surface is small, sorted, and what it says it is."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import fusionkit
from fusionkit import plugin

PUBLIC = ["Runtime", "__version__", "build", "create", "load", "load_recipe", "override", "plan", "step"]


def test_the_public_names_are_these_and_sorted() -> None:
    """A change here is a change for users: it belongs in CHANGELOG."""
    assert fusionkit.__all__ == PUBLIC == sorted(PUBLIC)
    assert set(PUBLIC) <= set(dir(fusionkit))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there_and_explained(name: str) -> None:
    value = getattr(fusionkit, name)
    assert isinstance(value, str) or inspect.getdoc(value)


def test_type_checkers_see_what_users_get() -> None:
    """The lazy table and the imports under TYPE_CHECKING name the same things."""
    tree = ast.parse(Path(str(fusionkit.__file__)).read_text(encoding="utf-8"))
    typed = {
        alias.asname or alias.name: (node.module, alias.name)
        for block in ast.walk(tree)
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("fusionkit.")
        for alias in node.names
    }
    assert typed == fusionkit._HOMES


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'fusionkit' has no attribute 'biuld'"):
        fusionkit.biuld  # noqa: B018


def test_what_authors_import_is_sorted_and_there() -> None:
    # Constants first, as ruff sorts them; within each kind by name.
    assert sorted(plugin.__all__) == sorted(set(plugin.__all__))
    assert [name for name in plugin.__all__ if not hasattr(plugin, name)] == []
