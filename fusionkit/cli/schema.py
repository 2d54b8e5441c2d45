"""`fusionkit schema`: the JSON schema of recipes, for editors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fusionkit.cli.options import PluginOption, load_plugins
from fusionkit.cli.output import emit_json, note
from fusionkit.cli.writing import write_json


def command(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write it there instead of to stdout.", show_default=False),
    ] = None,
    plugin: PluginOption = None,
) -> None:
    """Print the JSON schema of recipes, with the options of every installed block.

    An editor that knows it completes keys and block names. Blocks that cannot be loaded are left out and named.

    \b
    Examples:
      fusionkit schema -o recipe.schema.json
      fusionkit schema --plugin ./my_block.py

    Then begin a recipe with the line: # yaml-language-server: $schema=recipe.schema.json
    """
    from fusionkit.recipe.export import json_schema

    load_plugins(plugin)
    schema, faults = json_schema()
    for fault in faults:
        note(f"left out: {fault}")
    if output is None:
        emit_json(schema)
    else:
        write_json(output, schema)
