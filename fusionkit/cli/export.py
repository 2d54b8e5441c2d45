"""`fusionkit export`: a recipe with everything filled in."""

from __future__ import annotations

from fusionkit.cli.options import JsonOption, PluginOption, RecipeArg, SetOption, open_recipe
from fusionkit.cli.output import emit, emit_json


def command(recipe: RecipeArg, set: SetOption = None, plugin: PluginOption = None, json: JsonOption = False) -> None:
    """Print a recipe as one YAML file: `extends` resolved, changes made, every default written out.

    The output is a recipe again, with the same meaning.

    \b
    Examples:
      fusionkit export tiny > mine.yaml
      fusionkit export come_vl --set train.seed=1
      fusionkit export recipes/mine.yaml --json
    """
    loaded = open_recipe(recipe, set, plugin).canonical()
    if json:
        emit_json(loaded)
        return
    from fusionkit.recipe.export import to_yaml

    emit(to_yaml(loaded).rstrip("\n"))
