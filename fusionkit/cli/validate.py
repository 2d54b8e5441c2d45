"""`fusionkit validate`: whether recipes are well formed. Reached without typer, so it reads its own words."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusionkit.cli.opening import load_plugins, open_recipe
from fusionkit.cli.output import emit, emit_json, note
from fusionkit.errors import RecipeError
from fusionkit.recipe.requirements import unnamed_requirements

DESCRIPTION = """\
Check recipes: the text, every key, the options of every block by itself. Nothing is built.

All problems are printed, one a line, as FILE:LINE:COLUMN: ADDRESS: what is wrong (what to do).

Not checked here is whether the blocks fit each other (heads divide a width, steps find the grid and the names they
read, tokens stay within sequence_length) and whether models are known. That is the next question: fusionkit plan RECIPE.
"""
EXAMPLES = """\
examples:
  fusionkit validate recipes/mine.yaml
  fusionkit validate recipes/*.yaml
  fusionkit validate come_vl --set fusion.align.heads=8
  fusionkit validate mine.yaml --plugin ./my_block.py --json
"""


def main(words: Sequence[str]) -> None:
    """Check every recipe named; raises SystemExit(2) if one is not valid."""
    parser = argparse.ArgumentParser(
        "fusionkit validate",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help="a recipe file, or a shipped recipe by name")
    parser.add_argument("--set", action="append", metavar="ADDRESS=VALUE", help="change one value; may be repeated")
    parser.add_argument("--plugin", action="append", type=Path, metavar="FILE", help="load the blocks of a Python file")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args(words)
    load_plugins(options.plugin)
    results = [_check(name, options.set) for name in options.recipes]
    if options.json:
        emit_json({"valid": all(result["valid"] for result in results), "recipes": results})
    else:
        _print(results)
    if not all(result["valid"] for result in results):
        raise SystemExit(2)


def _check(name: str, changes: Sequence[str] | None) -> dict[str, Any]:
    try:
        recipe = open_recipe(name, changes)
    except RecipeError as error:
        return {"recipe": name, "valid": False, "problems": error.problems}
    return {
        "recipe": name,
        "valid": True,
        "problems": (),
        "streams": len(recipe.streams),
        "blocks": sum(1 for _ in recipe.blocks()),
        "unnamed_requirements": unnamed_requirements(recipe),
    }


def _print(results: Sequence[dict[str, Any]]) -> None:
    for result in results:
        if result["valid"]:
            streams = "1 stream" if result["streams"] == 1 else f"{result['streams']} streams"
            emit(f"{result['recipe']}: valid, {streams}, {result['blocks']} blocks")
            if unnamed := result["unnamed_requirements"]:
                note(
                    f"note: {result['recipe']} uses plugins that it does not name; add `requires: {json.dumps(unnamed)}`, "
                    "and whoever lacks one is told what to install"
                )
        for problem in result["problems"]:
            note(f"error: {problem}")
