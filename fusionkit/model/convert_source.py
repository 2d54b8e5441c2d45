"""The checkpoint of another project as a mapping from names to tensors, read when they are asked for."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fusionkit.errors import CheckpointError

PICKLED = (".pt", ".pth", ".bin")


class SafetensorsFiles(Mapping[str, Tensor]):
    """All tensors of some .safetensors files; nothing is in memory that was not asked for."""

    def __init__(self, files: list[Path]) -> None:
        self._stack = ExitStack()
        self._open: dict[str, Any] = {}
        for file in files:
            try:
                handle = self._stack.enter_context(safe_open(file, framework="pt"))
                names = list(handle.keys())
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{file}: damaged or incomplete: {error} (copy it again)") from error
            for name in names:
                if name in self._open:
                    raise CheckpointError(f"{file}: tensor '{name}' is in another file of the folder too")
                self._open[name] = handle

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._open[name].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._open)

    def __len__(self) -> int:
        return len(self._open)


def open_tensors(source: str | Path, key: str | None = None) -> Mapping[str, Tensor]:
    """The tensors of a .safetensors or torch file, or of a folder with some; `key` is where they are in a torch file.

    Torch files are read without running anything that is pickled in them. Raises CheckpointError.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint; expected a .safetensors or .pt file, or a folder with them")
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if files and all(file.suffix == ".safetensors" for file in files):
        return SafetensorsFiles(files)
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.suffix in PICKLED)
    if len(files) != 1 or files[0].suffix not in PICKLED:
        names = ", ".join(file.name for file in files) or "none"
        raise CheckpointError(f"{path}: expected .safetensors files, or one {' or '.join(PICKLED)} file; found {names}")
    return _unpickled(files[0], key)


def _unpickled(file: Path, key: str | None) -> Mapping[str, Tensor]:
    try:
        # Files of before torch 1.6 are no zip archives; they cannot be mapped into memory, only read.
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # a damaged pickle raises whatever its bytes lead to, KeyError for one
        # torch's own text for what is no tensor advises to run the pickle.
        known = isinstance(error, (RuntimeError, OSError))
        why = str(error).splitlines()[0] if known else "it holds other objects, or is damaged"
        raise CheckpointError(
            f"{file}: cannot be read as tensors only: {why} (convert it to .safetensors first)"
        ) from error
    if isinstance(content, Mapping) and key is not None and isinstance(content.get(key), Mapping):
        content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(
            f"{file}: expected a mapping from names to tensors" + (f", or one at '{key}'" if key else "")
        )
    return content
