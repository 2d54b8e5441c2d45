"""From a source to a checked recipe: read, follow `extends`, merge, make the `--set` changes, validate."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fusionkit.errors import Problem, RecipeValidationError
from fusionkit.recipe.locate import open_chain
from fusionkit.recipe.merge import merge
from fusionkit.recipe.overrides import override
from fusionkit.recipe.requirements import check_requirements
from fusionkit.recipe.schema import Recipe
from fusionkit.recipe.section import Lookups
from fusionkit.recipe.tree import Table, child, plain


def load_recipe(source: str | Path | Mapping[str, Any], *, set: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe: a path, `builtin:NAME`, `DISTRIBUTION:NAME` or a mapping; `set` as on the command line.

    Only the specs of the blocks it names are loaded, never the blocks.

    Raises: RecipeError with all problems found (RecipeSyntaxError, RecipeValidationError).
    Example: `load_recipe("builtin:tiny", set=["train.seed=1"])`
    """
    return validate(override(read_tree(source), set))


def read_tree(source: str | Path | Mapping[str, Any]) -> Table:
    """The recipe with everything it extends laid under it, not validated yet."""
    problems: list[Problem] = []
    merged: Table | None = None
    for tree in reversed(open_chain(source)):
        merged = merge(merged, tree, problems)
    if problems:
        raise RecipeValidationError(problems)
    return merged if merged is not None else Table()


def validate(tree: Table) -> Recipe:
    """The recipe that a tree describes.

    Raises: RecipeValidationError with all problems found.
    """
    problems = check_requirements(tree)
    try:
        recipe = _validate(tree)
    except ValidationError as error:
        from fusionkit.recipe.problems import translate  # a recipe without faults does without

        raise RecipeValidationError([*problems, *translate(error, tree)]) from error
    problems += _clashes(recipe)
    if problems:
        raise RecipeValidationError(problems)
    return recipe


def _validate(tree: Table) -> Recipe:
    try:
        recipe = Recipe.model_validate_json(json.dumps(plain(tree)), context=Lookups())
    except ValidationError as error:
        from fusionkit.recipe.problems import unset_leaves

        refused = list(unset_leaves(error, tree))
        if not refused:
            raise
        for path in refused:
            _remove(tree, path)
        return _validate(tree)
    recipe._tree = tree
    return recipe


def _remove(tree: Table, path: Sequence[str | int]) -> None:
    *above, last = path
    node: Any = tree
    for key in above:
        node = child(node, key)
    node.entries.pop(str(last), None)


def _clashes(recipe: Recipe) -> list[Problem]:
    """Names that two things would answer to where a fusion step says what it reads."""
    return [
        recipe.problem(f"fusion.{name}", f"the name '{name}' is taken by streams.{name}", "rename the step")
        for name in recipe.fusion
        if name in recipe.streams
    ]
