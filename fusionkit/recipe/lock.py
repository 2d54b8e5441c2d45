"""Lock a recipe: what exactly it means, what it was made with, and how it was trained.

Three parts. `model` is the canonical recipe of the model with its hash: a checkpoint fits only a recipe that means the
same. `environment` has versions and file hashes: reported when they differ, never an error. `run` has name, training
and data: kept, not compared. A lock is JSON; ordered mappings are written as lists of pairs, because much JSON software
sorts keys and the order of steps has a meaning.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from fusionkit.errors import LockMismatchError, Problem, RecipeError
from fusionkit.recipe.compare import Kind, changes
from fusionkit.recipe.lock_data import data_hashes
from fusionkit.recipe.lock_environment import environment
from fusionkit.recipe.schema import Recipe

FORMAT = 1
SHOWN = 10
"""How many differences an error names."""

RUN = ("name", "summary", "requires", "train", "evaluate")
"""The parts of a recipe that do not change what a checkpoint is."""

_PAIRED = ("streams", "steps", "fusion", "injectors", "stages", "objectives")


def lock(recipe: Recipe) -> dict[str, Any]:
    """The lock of a recipe, here and now.

    Example: `lock(load_recipe("builtin:tiny"))["model"]["hash"]`
    """
    canonical = recipe.canonical()
    model = _paired({key: value for key, value in canonical.items() if key not in RUN})
    run = _paired({key: canonical[key] for key in RUN})
    return {
        "lock": FORMAT,
        "model": {"hash": _hash(model), "recipe": model},
        "environment": environment(recipe),
        "run": {"recipe": run, "data": data_hashes(recipe)},
    }


def unlock(locked: Mapping[str, Any]) -> dict[str, Any]:
    """The canonical recipe in a lock, as `load_recipe` takes it.

    Raises: LockMismatchError if it is no lock, or its recipe is not the one it was made from.
    """
    try:
        version, model, run = locked["lock"], locked["model"]["recipe"], locked["run"]["recipe"]
        intact = locked["model"]["hash"] == _hash(model)
        recipe: dict[str, Any] = _unpaired({**model, **run})
    except (KeyError, TypeError, ValueError) as error:
        raise _mismatch(f"is not a lock of format {FORMAT}", "make one with `fusionkit lock`") from error
    if version != FORMAT:
        raise _mismatch(f"is a lock of format {version}, this fusionkit reads {FORMAT}", "upgrade fusionkit")
    if not intact:
        raise _mismatch("was changed after it was made: its recipe does not have its hash", "make it anew")
    return recipe


def check_lock(locked: Mapping[str, Any], recipe: Recipe) -> tuple[str, ...]:
    """Compare a lock with a recipe; gives what differs in the environment, in words.

    Raises: LockMismatchError, naming the first differences, when the recipe is not the one that was locked.
    """
    before = _model_part(_current(unlock(locked)))
    found = list(changes(before, _model_part(recipe.canonical())))
    if found:
        problems = []
        for number, change in enumerate(found[:SHOWN], start=1):
            left = f"and {len(found) - SHOWN} more differences" if number == SHOWN < len(found) else ""
            if change.kind is Kind.ADDED:
                message = f"{change.after_text} here, not in the lock"
            elif change.kind is Kind.REMOVED:
                message = f"{change.before_text} in the lock, not here"
            else:
                message = f"{change.after_text} here, {change.before_text} in the lock"
            problems.append(recipe.problem(change.address, message, left))
        raise LockMismatchError(problems)
    return tuple(_environment_changes(locked.get("environment", {}), environment(recipe)))


def _current(canonical: dict[str, Any]) -> dict[str, Any]:
    """A locked recipe with the defaults of options that blocks have gained since; as it is if it is not valid now."""
    from fusionkit.recipe.load import load_recipe

    try:
        return load_recipe(canonical).canonical()
    except RecipeError:
        # A block is missing or takes other options now: comparing what was written shows which.
        return canonical


def _model_part(canonical: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in canonical.items() if key not in RUN}


def _environment_changes(before: Any, after: Mapping[str, Any]) -> list[str]:
    """Lines such as `distributions.torch: 2.11.0 then, 2.15.0 now`, for what both environments have."""
    return [
        f"{change.address}: {change.before_text} then, {change.after_text} now"
        for change in changes(before, after)
        if change.kind is Kind.CHANGED
    ]


def _paired(value: Any, key: str = "") -> Any:
    """The value with every mapping of named parts as a list of [name, part]; blocks are left as they are."""
    if not isinstance(value, Mapping) or "type" in value:
        return value
    if key in _PAIRED:
        return [[name, _paired(part)] for name, part in value.items()]
    return {name: _paired(part, name) for name, part in value.items()}


def _unpaired(value: Any, key: str = "") -> Any:
    if key in _PAIRED and isinstance(value, list):
        return {name: _unpaired(part) for name, part in value}
    if not isinstance(value, Mapping) or "type" in value:
        return value
    return {name: _unpaired(part, name) for name, part in value.items()}


def _hash(model: Any) -> str:
    text = json.dumps(model, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _mismatch(message: str, hint: str) -> LockMismatchError:
    return LockMismatchError([Problem("lock", 0, 0, "", message, hint)])
