"""Training a recipe on a person's own file instead of the data it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fusionkit.data.read import open_jsonl
from fusionkit.errors import DataError, UsageError
from fusionkit.recipe import Recipe


def on_own_data(recipe: Recipe, path: Path) -> dict[str, Any]:
    """The recipe with `path` as its only training data.

    Stages whose objectives read annotated objects (patch objectives) are left out: a JSONL file has no such objects.
    Their encoders then start from where the recipe starts them. Every row is read once, so that hours of training do
    not end at a broken one. Raises DataError for a missing file or a row that cannot be used, UsageError when no stage
    is left.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; --data takes a .jsonl file (see `fusionkit data check --help`)")
    if recipe.train is None:
        raise UsageError(f"recipe '{recipe.name}' has no `train` section; see `fusionkit show tiny`")
    _check_rows(path)
    changed = recipe.canonical()
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


def _check_rows(path: Path) -> None:
    dataset = open_jsonl(path)
    try:
        for index in range(len(dataset)):
            dataset[index]
    except DataError as error:
        raise DataError(f"{error} (`fusionkit data check {path}` shows all that is wrong)") from error
