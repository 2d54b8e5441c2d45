"""Opening what the library `datasets` reads. The library is an extra, imported inside the functions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fusionkit.blocks.datasets.specs import HuggingFaceConfig
from fusionkit.errors import DataError
from fusionkit.hub import unreachable

OLDEST = 4
"""The first version that runs no script of a dataset."""
BUILDERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".arrow": "arrow"}
"""What reads a single file, by its ending."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def open_table(config: HuggingFaceConfig) -> Any:
    """The one split that a config names, as a `datasets.Dataset`.

    Raises DataError: the library is not installed, the path is nothing that can be read, a split is missing or one of
    several is not chosen, there is no row, the hub cannot be reached.
    """
    library = _library(config)
    path = Path(config.path)
    try:
        found = _local(library, config, path) if path.exists() else _from_hub(library, config)
    except library.exceptions.DatasetsError as error:
        raise DataError(f"{config.path}: cannot be read: {_reason(error)}") from error
    # What the library and pyarrow raise derives from these; for a saved table without rows it is an IndexError.
    except (OSError, ValueError, RuntimeError, LookupError) as error:
        raise DataError(f"{config.path}: cannot be read: {_reason(error)}") from error
    return _only_split(config, dict(found)) if isinstance(found, library.DatasetDict) else found


def _library(config: HuggingFaceConfig) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{config.path}: the dataset `hugging_face` needs the library datasets; install it with "
            "`pip install 'fusionkit[datasets]'`, or give the rows as .jsonl (see `fusionkit show jsonl`)"
        ) from error
    if int(datasets.__version__.split(".")[0]) < OLDEST:
        raise DataError(
            f"{config.path}: datasets {datasets.__version__} is installed, which may run code that a dataset brings; "
            f"install {OLDEST}.0 or newer with `pip install 'fusionkit[datasets]'`"
        )
    return datasets


def _local(library: Any, config: HuggingFaceConfig, path: Path) -> Any:
    if config.revision is not None:
        raise DataError(
            f"{config.path}: is a {'folder' if path.is_dir() else 'file'} here; only hub ids have a revision"
        )
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _saved(library, config, path)
    if path.is_dir():
        return library.load_dataset(str(path), config.name, split=config.split)
    builder = BUILDERS.get(path.suffix.lower())
    if builder is None:
        raise DataError(f"{path}: cannot be read; expected a folder, or a file ending with {', '.join(BUILDERS)}")
    return library.load_dataset(builder, data_files=str(path), split=config.split)


def _saved(library: Any, config: HuggingFaceConfig, path: Path) -> Any:
    """What `save_to_disk` wrote: one split, or a folder of them."""
    if config.name is not None:
        raise DataError(f"{config.path}: was saved with save_to_disk and has no configurations; leave `name` out")
    found = library.load_from_disk(str(path))
    splits = dict(found) if isinstance(found, library.DatasetDict) else {str(found.split or "train"): found}
    if config.split is None:
        return _only_split(config, splits)
    if config.split not in splits:
        raise DataError(f"{config.path}: no split `{config.split}`; there are {', '.join(splits)}")
    return splits[config.split]


def _only_split(config: HuggingFaceConfig, splits: dict[str, Any]) -> Any:
    if len(splits) != 1:
        raise DataError(
            f"{config.path}: several splits: {', '.join(splits)}; choose one with `split: {next(iter(splits))}`"
        )
    return next(iter(splits.values()))


def _from_hub(library: Any, config: HuggingFaceConfig) -> Any:
    """From the hub, or from what was fetched from there before where it cannot be reached."""
    if not _HUB_ID.fullmatch(config.path):
        raise DataError(f"{config.path}: no such file or folder")
    if config.split is None:
        raise DataError(
            f"{config.path}: no such file or folder; as an id of the hub it needs `split` (for example `split: train`), "
            "because all of them would be fetched"
        )
    reason = unreachable()
    try:
        with _offline(library, reason is not None):
            return library.load_dataset(config.path, config.name, split=config.split, revision=config.revision)
    except OSError as error:
        raise DataError(
            f"{config.path}: no such file or folder, and as an id of the hub it cannot be had: "
            f"{reason or _reason(error)}; run once with a network, or give the path of a folder"
        ) from error


@contextmanager
def _offline(library: Any, offline: bool) -> Iterator[None]:
    """Without a network the library would try for half a minute before it looks at what was fetched earlier."""
    before = library.config.HF_HUB_OFFLINE
    library.config.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        library.config.HF_HUB_OFFLINE = before


def _reason(error: BaseException) -> str:
    """The first line of what went wrong, and of what was the cause of it."""
    lines = [
        str(each).strip().splitlines() for each in (error, error.__cause__) if each is not None and str(each).strip()
    ]
    return ": ".join(line[0].rstrip(".") for line in lines) or type(error).__name__
