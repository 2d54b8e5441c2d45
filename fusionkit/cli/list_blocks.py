"""`fusionkit list`: what is installed, read from metadata alone. Reached without typer, so it reads its own words."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fusionkit import discovery
from fusionkit.cli.output import emit_json, note, table

DESCRIPTION = """\
List the installed blocks and recipes, and which distribution brings them.

Nothing is imported: STATE says whether a name can be used, `fusionkit doctor` whether the block loads.
"""
EXAMPLES = """\
examples:
  fusionkit list
  fusionkit list mixers
  fusionkit list recipes
  fusionkit list encoders --json
"""


def main(words: Sequence[str]) -> None:
    """Print the blocks and recipes, or one family of them."""
    parser = argparse.ArgumentParser(
        "fusionkit list",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("family", nargs="?", metavar="FAMILY", help="a family, in the plural or singular, or `recipes`")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args(words)
    scanned = discovery.scan()
    blocks, recipes = _select(scanned, options.family)
    if options.json:
        emit_json({"blocks": blocks, "recipes": recipes, "troubles": scanned.troubles})
    else:
        _print(blocks, recipes)
        for trouble in scanned.troubles:
            note(f"{trouble.distribution}: {trouble.message}")


def _select(
    scanned: discovery.Scan, family: str | None
) -> tuple[Sequence[discovery.Entry], Sequence[discovery.RecipeEntry]]:
    if family is None:
        return scanned.blocks, discovery.recipes(scanned)
    if family in (discovery.RECIPES, "recipe"):
        return (), discovery.recipes(scanned)
    wanted = discovery.family_name(family)
    return [entry for entry in scanned.blocks if entry.family == wanted], ()


def _print(blocks: Sequence[discovery.Entry], recipes: Sequence[discovery.RecipeEntry]) -> None:
    rows = [(each.family, each.name, each.distribution, each.version, each.state) for each in blocks]
    rows += [(discovery.RECIPES, each.address, each.distribution, each.version, each.state) for each in recipes]
    table(("FAMILY", "NAME", "DISTRIBUTION", "VERSION", "STATE"), rows)
    if rows and sys.stdout.isatty():  # for people; a pipe gets the table alone
        example = f"{blocks[0].family}/{blocks[0].name}" if blocks else recipes[0].address
        note(f"\n`fusionkit show {example}` explains the first of them")
    found: list[discovery.Entry | discovery.RecipeEntry] = [*blocks, *recipes]
    for each in found:
        if each.state != "ok":
            note(f"{each.address} of {each.distribution} {each.version}: {each.state}: {each.reason}")
