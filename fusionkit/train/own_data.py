"""Training a recipe on a person's own file instead of the data it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fusionkit.errors import DataError, UsageError
from fusionkit.recipe import Recipe


def on_own_data(recipe: Recipe, path: Path) -> dict[str, Any]:
    """The recipe with `path` as its only training data.

    Stages whose objectives read annotated objects (patch objectives) are left out: a JSONL file has no such objects.
    Their encoders then start from where the recipe starts them. Raises DataError for a missing file and UsageError when
    no stage is left.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; --data takes a .jsonl file (see `fusionkit data check --help`)")
    changed = recipe.canonical()
    if recipe.train is None:
        raise UsageError(f"recipe '{recipe.name}' has no `train` section")
    train = changed["train"]
    train["data"] = [{"type": "jsonl", "path": str(path.resolve())}]
    kept = {
        name: {**stage, "data": None}
        for name, stage in train["stages"].items()
        if all(objective["type"] == "answer_tokens" for objective in stage["objectives"].values())
    }
    if not kept:
        raise UsageError(
            f"recipe '{recipe.name}' has no stage that learns from answers alone, so --data cannot be used"
        )
    if len(kept) < len(train["stages"]):
        first = next(iter(kept.values()))
        first["trainable"] = list(dict.fromkeys([*first["trainable"], *(f"streams.{name}" for name in recipe.streams)]))
    train["stages"] = kept
    return changed
