"""The folder of a checkpoint: finding it, and what is wrong with it before any weight is read. Torch-free."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from fusionkit.errors import CheckpointError, LockMismatchError
from fusionkit.recipe.lock import unlock

SHIPPED = "checkpoint:"
CONFIG_FILE = "config.json"
LOCK_FILE = "lock.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

FILES = ("model*.safetensors", "processor_config.json", "tokenizer_config.json", "tokenizer.json", LOCK_FILE)
"""What a complete checkpoint has beside config.json."""

AGAIN = "copy the whole folder again"


def find_checkpoint(source: str | Path) -> Path:
    """The folder of a checkpoint: a path, or `checkpoint:NAME` for one shipped with fusionkit.

    Raises CheckpointError when there is none, or it is not a fusionkit checkpoint.
    """
    text = str(source)
    if text.startswith(SHIPPED):
        root = Path(str(resources.files("fusionkit") / "checkpoints"))
        folder = root / text.removeprefix(SHIPPED)
        if not (folder / CONFIG_FILE).is_file():
            shipped = sorted(path.parent.name for path in root.glob(f"*/{CONFIG_FILE}"))
            raise CheckpointError(
                f"no checkpoint '{text}' is shipped; there is {', '.join(SHIPPED + name for name in shipped) or 'none'}"
            )
        return folder
    folder = Path(source)
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: no such checkpoint folder (train one: `fusionkit train RECIPE -o {folder}`; or use checkpoint:tiny)"
        )
    config = folder / CONFIG_FILE
    if not config.is_file():
        raise CheckpointError(f"{folder}: not a checkpoint, it has no {CONFIG_FILE}")
    model_type = _read(config).get("model_type")
    if model_type != "fusionkit":
        raise CheckpointError(f"{config}: model_type is '{model_type}', expected 'fusionkit'")
    return folder


def check_folder(folder: Path) -> None:
    """Raise when a file that every checkpoint has is missing, or lock.json and config.json are not of one recipe.

    Raises: CheckpointError; LockMismatchError for a lock that was changed after it was made.
    """
    for pattern in FILES:
        if next(folder.glob(pattern), None) is None:
            raise CheckpointError(f"{folder}: incomplete checkpoint, it has no {pattern.replace('*', '')} ({AGAIN})")
    if not (folder / WEIGHTS_FILE).exists():  # or an index beside it is left over from an earlier save
        shards = sorted(set(_read(folder / INDEX_FILE).get("weight_map", {}).values()))
        if missing := [name for name in shards if not (folder / name).is_file()]:
            raise CheckpointError(
                f"{folder}: incomplete checkpoint, {len(missing)} of {len(shards)} files of weights are missing, "
                f"first {missing[0]} ({AGAIN})"
            )
    beside, inside = read_lock(folder), _read(folder / CONFIG_FILE).get("lock")
    try:
        unlock(beside)
    except LockMismatchError as error:
        where = str(folder / LOCK_FILE)
        raise LockMismatchError(replace(problem, source=where) for problem in error.problems) from error
    if not isinstance(inside, dict) or inside.get("model", {}).get("hash") != beside["model"]["hash"]:
        raise CheckpointError(
            f"{folder / LOCK_FILE}: it locks another recipe than the one in {CONFIG_FILE}, which the weights belong to "
            f"(keep the files of one checkpoint together; {AGAIN})"
        )


def read_lock(folder: Path) -> dict[str, Any]:
    """The lock of a checkpoint folder; raises CheckpointError when it cannot be read."""
    path = folder / LOCK_FILE
    try:
        lock = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: no readable lock: {error} ({AGAIN})") from error
    if not isinstance(lock, dict):
        raise CheckpointError(f"{path}: no readable lock: expected a JSON object ({AGAIN})")
    return lock


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged, not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: damaged: expected a JSON object")
    return content
