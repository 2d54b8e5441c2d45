"""`fusionkit graph`: a recipe as a picture, or as Mermaid text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fusionkit.cli.options import JsonOption, PluginOption, RecipeArg, SetOption, open_recipe
from fusionkit.cli.output import emit, emit_json, note
from fusionkit.cli.writing import replacing, write_text
from fusionkit.errors import UsageError

FORMATS = (".svg", ".png", ".mmd")


def command(
    recipe: RecipeArg,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="Where to: .svg, .png or .mmd; Mermaid to stdout if not given."
        ),
    ] = None,
    json: JsonOption = False,
    set: SetOption = None,
    plugin: PluginOption = None,
) -> None:
    """Draw a recipe: streams side by side, then fusion, injectors and the language model, with shapes and sizes.

    \b
    Examples:
      fusionkit graph tiny -o tiny.svg
      fusionkit graph recipes/mine.yaml -o mine.png       needs matplotlib
      fusionkit graph tiny                                Mermaid text, for Markdown pages
    """
    from fusionkit.recipe.graph import graph_of, mermaid
    from fusionkit.recipe.plan import plan

    if output is not None and output.suffix.lower() not in FORMATS:
        raise UsageError(f"-o {output}: expected a name that ends in {', '.join(FORMATS)}")
    graph = graph_of(plan(open_recipe(recipe, set, plugin)))
    if json:
        emit_json({"title": graph.title, "boxes": graph.boxes, "edges": graph.edges})
    if output is None:
        if not json:
            emit(mermaid(graph).rstrip())
        return
    from fusionkit.recipe.graph_layout import place
    from fusionkit.recipe.graph_svg import svg

    kind = output.suffix.lower()
    if kind == ".png":
        from fusionkit.cli.graph_png import write_png

        with replacing(output) as staging:
            write_png(place(graph), staging)
    else:
        write_text(output, svg(place(graph)) if kind == ".svg" else mermaid(graph))
    note(f"wrote {output}")
