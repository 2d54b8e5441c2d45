"""`fusionkit lock`: write down exactly what a recipe means, or compare it with what was written down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fusionkit.cli.options import JsonOption, PluginOption, RecipeArg, SetOption, open_recipe
from fusionkit.cli.output import emit, emit_json
from fusionkit.cli.writing import write_json
from fusionkit.errors import UsageError


def command(
    recipe: RecipeArg,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the lock there.", show_default=False),
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(
            "--check",
            metavar="LOCK",
            help="Compare with this lock file, or the lock.json of this checkpoint folder.",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
    set: SetOption = None,
    plugin: PluginOption = None,
) -> None:
    """Lock a recipe: its canonical form with a hash, the versions and files behind every block, its training.

    Every checkpoint carries such a lock. With --check, a recipe that does not mean the same model is an error that names
    the differences (exit code 2); other versions or files are reported only.

    \b
    Examples:
      fusionkit lock tiny -o tiny.lock.json
      fusionkit lock recipes/mine.yaml --check runs/mine/lock.json
    """
    from fusionkit.recipe.lock import check_lock, lock

    opened = open_recipe(recipe, set, plugin)
    if check is not None:
        changed = check_lock(read_lock(check), opened)
        if json:
            emit_json({"equal": True, "environment": changed})
            return
        emit(f"{recipe}: the model is the one locked in {check}")
        for line in changed:
            emit(f"  {line}")
        return
    locked = lock(opened)
    if output is not None:
        write_json(output, locked)
    elif json:
        emit_json(locked)
    else:
        _show(locked)


def read_lock(path: Path) -> dict[str, Any]:
    """The lock in a file, or in a checkpoint folder. Raises UsageError."""
    file = path / "lock.json" if path.is_dir() else path
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{file}: no readable lock: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{file}: not JSON: {error} (make a lock with `fusionkit lock RECIPE -o FILE`)") from error
    if not isinstance(read, dict) or "lock" not in read:
        raise UsageError(f"{file}: not a lock (make one with `fusionkit lock RECIPE -o FILE`)")
    return read


def _show(locked: dict[str, Any]) -> None:
    """The lock in short; the whole of it is JSON."""
    environment = locked["environment"]
    emit(f"model        {locked['model']['hash']}")
    emit(f"environment  python {environment['python']} on {environment['platform']}")
    for name, version in environment["distributions"].items():
        emit(f"             {name} {version}")
    emit(f"blocks       {len(environment['blocks'])}, each with its distribution and file hashes")
    emit("             (all of it: --json, or -o FILE)")
