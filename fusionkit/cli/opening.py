"""The one way from a command line to a recipe. Imports neither typer nor the recipe code before it is needed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fusionkit.recipe import Recipe

_SHIPPED = re.compile(r"[a-z0-9_]+")


def load_plugins(plugin: Sequence[Path] | None) -> None:
    """Register the blocks of every `--plugin FILE`; importing the registry costs nothing when there is none."""
    if plugin:
        from fusionkit import registry

        for path in plugin:
            registry.load_plugin_file(path)


def recipe_source(argument: str) -> str:
    """What `load_recipe` is given for a command-line argument: a bare name means a shipped recipe."""
    return f"builtin:{argument}" if _SHIPPED.fullmatch(argument) else argument


def open_recipe(argument: str, set: Sequence[str] | None = None, plugin: Sequence[Path] | None = None) -> Recipe:
    """The recipe a command line names, with its plugins loaded and its `--set` changes made."""
    load_plugins(plugin)
    from fusionkit.recipe import load_recipe

    return load_recipe(recipe_source(argument), set=tuple(set or ()))
