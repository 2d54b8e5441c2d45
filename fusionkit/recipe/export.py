"""A recipe as YAML text, and the JSON schema of recipes with every installed block."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from fusionkit import registry
from fusionkit.errors import PluginError
from fusionkit.plugin import FAMILIES, STEP_FAMILIES
from fusionkit.recipe.merge import BEFORE
from fusionkit.recipe.scalars import resolve
from fusionkit.recipe.schema import Recipe
from fusionkit.recipe.section import FAMILY_KEY, SHORT_KEY, STEP

DIALECT = "https://json-schema.org/draft/2020-12/schema"
WIDTH = 110


# ------------------------------------------------------------------------------------------------------- YAML
def to_yaml(canonical: Mapping[str, Any]) -> str:
    """YAML in the subset that recipes are written in; `load_recipe` reads the same values back."""
    # Imported here so that the schema can be had without the YAML library.
    import yaml

    class Dumper(yaml.SafeDumper):
        """Quotes what our scalars would not read as a string, and never writes an alias."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    def represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        style = None if _reads_as_text(text) else "'"
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    Dumper.add_representer(str, represent_text)
    dumped: str = yaml.dump(
        dict(canonical), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=WIDTH, default_flow_style=None
    )
    return dumped


def _reads_as_text(text: str) -> bool:
    try:
        return isinstance(resolve(text), str)
    except ValueError:
        return False


# ------------------------------------------------------------------------------------------------ JSON schema
def json_schema() -> tuple[dict[str, Any], tuple[str, ...]]:
    """(the JSON schema of recipes, why blocks that are missing in it could not be loaded).

    A block is one of the installed blocks of its family, told apart by `type`. A recipe that extends another may leave
    out anything, so it is only held to the known keys.
    """
    recipe = Recipe.model_json_schema(by_alias=True)
    definitions: dict[str, Any] = recipe.pop("$defs", {})
    faults: list[str] = []
    for family in FAMILIES:
        definitions[family] = {"oneOf": _blocks_of(family, definitions, faults)}
    definitions[STEP] = {"oneOf": [choice for family in STEP_FAMILIES for choice in definitions[family]["oneOf"]]}
    definitions["Recipe"] = recipe
    definitions["Overlay"] = _overlay(recipe)
    schema = {
        "$schema": DIALECT,
        "title": "fusionkit recipe",
        "if": {"type": "object", "required": ["extends"]},
        "then": {"$ref": "#/$defs/Overlay"},
        "else": {"$ref": "#/$defs/Recipe"},
        "$defs": definitions,
    }
    return _with_blocks(schema), tuple(faults)


def _blocks_of(family: str, definitions: dict[str, Any], faults: list[str]) -> list[dict[str, Any]]:
    """References to the family's installed blocks, whose schemas go into `definitions`."""
    choices = []
    for name in registry.names(family):
        try:
            spec = registry.spec(family, name)
        except PluginError as error:
            # One broken plugin must not take the schema of all other blocks away; the caller reports it.
            faults.append(str(error))
            continue
        schema = copy.deepcopy(
            spec.config.model_json_schema(by_alias=True, ref_template=f"#/$defs/{family}.{name}.{{model}}")
        )
        for inner, definition in schema.pop("$defs", {}).items():
            definitions[f"{family}.{name}.{inner}"] = definition
        schema["description"] = spec.summary
        schema["required"] = ["type", *(key for key in schema.get("required", ()) if key != "type")]
        definitions[f"{family}.{name}"] = schema
        choices.append({"$ref": f"#/$defs/{family}.{name}"})
    return choices


def _overlay(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a recipe that extends another: known keys, any part of their values, null to remove."""
    extends = {"type": "string", "description": "builtin:NAME, DISTRIBUTION:NAME or a path in the recipe's folder."}
    keys = {name: {"description": part.get("description", "")} for name, part in recipe["properties"].items()}
    steps = {"description": f"A new entry goes last, unless it says `{BEFORE}: NAME`."}
    return {
        "type": "object",
        "properties": {"extends": extends, **keys, "fusion": steps},
        "additionalProperties": False,
    }


def _with_blocks(value: Any) -> Any:
    """The schema with a reference to the family's blocks wherever one is marked."""
    if isinstance(value, list):
        return [_with_blocks(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    kept = {key: _with_blocks(item) for key, item in value.items() if key not in (FAMILY_KEY, SHORT_KEY)}
    if FAMILY_KEY in value:
        blocks: dict[str, Any] = {"$ref": f"#/$defs/{value[FAMILY_KEY]}"}
        kept |= {"anyOf": [{"type": "string"}, blocks]} if value.get(SHORT_KEY) else blocks
    return kept
