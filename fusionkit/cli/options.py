"""The arguments that verbs share, for typer, and with them the one way from a command line to a recipe.

A verb takes them as `def command(recipe: RecipeArg, set: SetOption = None, plugin: PluginOption = None, ...)` and calls
`open_recipe(recipe, set, plugin)`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fusionkit.cli.opening import load_plugins, open_recipe, recipe_source

__all__ = [
    "JsonOption",
    "PluginOption",
    "RecipeArg",
    "SetOption",
    "load_plugins",
    "open_recipe",
    "recipe_source",
]

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
