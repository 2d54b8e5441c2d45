"""The arguments that verbs share, and the one way from a command line to a recipe.

A verb takes them as `def command(recipe: RecipeArg, set: SetOption = None, plugin: PluginOption = None, ...)` and calls
`open_recipe(recipe, set, plugin)`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fusionkit.recipe import Recipe

RecipeArg = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A recipe file, or a shipped recipe by name: `recipes/mine.yaml`, `tiny`, `builtin:tiny`.",
        show_default=False,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="ADDRESS=VALUE",
        help="Change one value of the recipe, for example `--set train.seed=1`. May be repeated.",
        show_default=False,
    ),
]
PluginOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin",
        metavar="FILE",
        help="Load the blocks of a local Python file for this command. Runs the file. May be repeated.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.", show_default=False)]

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
