"""Checkpoints: a folder with safetensors, config.json (the locked recipe), lock.json and the processor.

A save is atomic: files are written beside the target, flushed to disk and renamed, so an interrupted or failed
save leaves what was there before.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

import fusionkit.auto  # noqa: F401  (AutoTokenizer and AutoProcessor must know the model type)
from fusionkit.errors import CheckpointError
from fusionkit.model.modeling import FusionVLM
from fusionkit.model.processing import FusionProcessor
from fusionkit.recipe import Recipe
from fusionkit.recipe.lock import check_lock

SHIPPED = "checkpoint:"
LOCK_FILE = "lock.json"


def find_checkpoint(source: str | Path) -> Path:
    """The folder of a checkpoint: a path, or `checkpoint:NAME` for one shipped with fusionkit.

    Raises CheckpointError when there is none, or it is not a fusionkit checkpoint.
    """
    text = str(source)
    if text.startswith(SHIPPED):
        root = Path(str(resources.files("fusionkit") / "checkpoints"))
        folder = root / text.removeprefix(SHIPPED)
        if not (folder / "config.json").is_file():
            shipped = sorted(path.parent.name for path in root.glob("*/config.json"))
            raise CheckpointError(
                f"no checkpoint '{text}' is shipped; there is {', '.join(SHIPPED + name for name in shipped) or 'none'}"
            )
        return folder
    folder = Path(source)
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: no such checkpoint folder (train one: `fusionkit train RECIPE -o {folder}`; or use checkpoint:tiny)"
        )
    config = folder / "config.json"
    if not config.is_file():
        raise CheckpointError(f"{folder}: not a checkpoint, it has no config.json")
    try:
        model_type = json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except ValueError as error:
        raise CheckpointError(f"{config}: damaged, not JSON: {error}") from error
    if model_type != "fusionkit":
        raise CheckpointError(f"{config}: model_type is '{model_type}', expected 'fusionkit'")
    return folder


def load_checkpoint(source: str | Path, *, expect: Recipe | None = None) -> tuple[FusionVLM, FusionProcessor]:
    """Load model and processor, in eval mode, on the CPU.

    With `expect`, raises LockMismatchError when the checkpoint was made by another recipe. Raises CheckpointError
    when files are missing, damaged or do not fit the recipe inside.
    """
    folder = find_checkpoint(source)
    if expect is not None:
        check_lock(read_lock(folder), expect)
    try:
        with _no_progress_bars():
            model = FusionVLM.from_pretrained(folder, local_files_only=True)
            processor = FusionProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}: cannot load: {str(error).splitlines()[0]}") from error
    except Exception as error:
        if type(error).__module__.startswith("safetensors"):
            raise CheckpointError(f"{folder}: weights are damaged: {error}") from error
        raise
    model.eval()  # type: ignore[no-untyped-call]
    return model, processor


def read_lock(folder: Path) -> dict[str, Any]:
    """The lock of a checkpoint folder."""
    path = folder / LOCK_FILE
    try:
        lock: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: no readable lock: {error}") from error
    return lock


def save_checkpoint(
    folder: str | Path, model: FusionVLM, processor: FusionProcessor | None, extra: dict[str, str] | None = None
) -> Path:
    """Write a checkpoint folder atomically; `extra` are further text files by name.

    Raises CheckpointError when it cannot be written; an earlier checkpoint of that name then stays as it was.
    """
    target = Path(folder)
    staging = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(staging, ignore_errors=True)
        with _no_progress_bars():
            model.save_pretrained(staging)
        if processor is not None:
            processor.save_pretrained(staging)
        (staging / LOCK_FILE).write_text(
            json.dumps(model.config.lock, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )
        for name, text in (extra or {}).items():
            (staging / name).write_text(text, encoding="utf-8")
        _flush(staging)
        replace_folder(staging, target)
    except (OSError, RuntimeError) as error:  # safetensors reports a full disk as its own RuntimeError kin
        shutil.rmtree(staging, ignore_errors=True)
        raise CheckpointError(
            f"{target}: cannot save the checkpoint: {_reason(error)} (what was there before is unchanged)"
        ) from error
    except Exception as error:
        shutil.rmtree(staging, ignore_errors=True)
        if type(error).__module__.startswith("safetensors"):
            raise CheckpointError(
                f"{target}: cannot save the checkpoint: {error} (what was there before is unchanged)"
            ) from error
        raise
    return target


def replace_folder(staging: Path, target: Path) -> None:
    """Put `staging` in the place of `target`; at every moment one complete folder of either is on disk."""
    previous = target.with_name(f".{target.name}.{os.getpid()}.old")
    if target.exists():
        shutil.rmtree(previous, ignore_errors=True)
        target.rename(previous)
    staging.rename(target)
    shutil.rmtree(previous, ignore_errors=True)
    _sync(target.parent)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """transformers draws a bar even for a file of a megabyte; a person asking one question should not see two."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: BaseException) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
