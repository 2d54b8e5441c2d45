"""Checkpoints: a folder with safetensors, config.json (the locked recipe), lock.json, the processor and a model card.

A save is atomic: files are written beside the target, flushed to disk and renamed, so an interrupted or failed
save leaves what was there before.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

import fusionkit.auto  # noqa: F401  (AutoTokenizer and AutoProcessor must know the model type)
from fusionkit.errors import CheckpointError, LockMismatchError
from fusionkit.model.card import write_card
from fusionkit.model.folder import LOCK_FILE, SHIPPED, check_folder, find_checkpoint, read_lock
from fusionkit.model.modeling import FusionVLM
from fusionkit.model.processing import FusionProcessor
from fusionkit.recipe import Recipe
from fusionkit.recipe.lock import check_lock

__all__ = ["LOCK_FILE", "SHIPPED", "find_checkpoint", "load_checkpoint", "read_lock", "save_checkpoint"]

SAVE_ERRORS = (OSError, RuntimeError, SafetensorError)
"""What a failed write raises: RuntimeError is torch's."""


def load_checkpoint(source: str | Path, *, expect: Recipe | None = None) -> tuple[FusionVLM, FusionProcessor]:
    """Load model and processor, in eval mode, on the CPU.

    With `expect`, raises LockMismatchError when the checkpoint was made by another recipe. Raises CheckpointError
    when files are missing, damaged or do not fit the recipe inside.
    """
    folder = find_checkpoint(source)
    check_folder(folder)
    if expect is not None:
        check_lock(read_lock(folder), expect)
    try:
        with _quiet():
            model = FusionVLM.from_pretrained(folder, local_files_only=True)
            processor = FusionProcessor.from_pretrained(folder, local_files_only=True)
    except SafetensorError as error:
        raise CheckpointError(f"{folder}: weights are damaged: {error} (copy it again, or train it again)") from error
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{folder}: cannot load: {str(error).splitlines()[0]} (copy the whole folder again)"
        ) from error
    except LockMismatchError as error:
        where = str(folder / "config.json")
        raise LockMismatchError(replace(problem, source=where) for problem in error.problems) from error
    model.eval()  # type: ignore[no-untyped-call]
    return model, processor


def save_checkpoint(
    folder: str | Path,
    model: FusionVLM,
    processor: FusionProcessor | None,
    extra: Mapping[str, str | Path] | None = None,
) -> Path:
    """Write a checkpoint folder atomically; `extra` are further text files, and copies of folders, by name.

    Raises CheckpointError when it cannot be written; an earlier checkpoint of that name then stays as it was.
    """
    target = Path(folder)
    staging = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(staging, ignore_errors=True)
        with _quiet():
            model.save_pretrained(staging)
        if processor is not None:
            processor.save_pretrained(staging)
        for name, content in (extra or {}).items():
            if isinstance(content, Path):
                shutil.copytree(content, staging / name)
            else:
                (staging / name).write_text(content, encoding="utf-8")
        write_card(staging, model.plan, target.name)
        _open_to_readers(staging)
        flush(staging)
        replace_folder(staging, target)
    except SAVE_ERRORS as error:
        why = failure(error, target.parent)  # before the files beside it go: they may be what filled the disk
        raise CheckpointError(
            f"{target}: cannot save the checkpoint: {why} (what was there before is unchanged)"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
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


def failure(error: BaseException, folder: Path) -> str:
    """Why files could not be written to a folder, in words. torch and safetensors hide a full disk in errors of their own."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if shutil.disk_usage(folder).free < 2**20:
        return os.strerror(errno.ENOSPC)
    return str(error).splitlines()[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers draws bars for a file of a megabyte and tables of names; what matters of both is said by us."""
    shown = transformers_logging.is_progress_bar_enabled()
    level = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if shown:
            transformers_logging.enable_progress_bar()


def _open_to_readers(folder: Path) -> None:
    """safetensors writes files that only their owner may read; give them the modes that any other new file gets."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)


def flush(folder: Path) -> None:
    """Bring a folder and its files onto the disk."""
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
