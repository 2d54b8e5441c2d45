"""Sums over pictures that outlive the process: matrices that grow by every picture and never in size.

Gram matrices and normal equations are what a linear probe, CKA and a linear map between encoders need of all tokens.
They are kept in one safetensors file, with the names of the pictures that are in them, and saved whole or not at all:
every half minute, at the end, and on Ctrl-C. An interruption in the middle of an addition loses what came since the
last save, never half of a picture.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fusionkit.errors import UsageError

KIND, VERSION = "fusionkit_sums", "1"
EVERY = 30.0
"""Seconds between two saves."""


class Item(Protocol):
    """What a sum is over: a picture by its name and size on disk."""

    @property
    def name(self) -> str: ...

    @property
    def bytes(self) -> int: ...


class Sums:
    """Named float64 matrices on the CPU, and which pictures are in them.

    Raises UsageError when the file holds sums under other settings, or over pictures that are gone, unless `fresh`
    says to drop them.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], items: Sequence[Item], *, fresh: bool = False) -> None:
        self.path, self.settings = path, json.dumps(settings, sort_keys=True)
        self.matrices: dict[str, Tensor] = {}
        self.inside: set[tuple[str, int]] = set()
        self._saved_at, self._unsaved, self._adding = time.monotonic(), False, False
        if path.exists() and not fresh:
            self._load(items)

    def left(self, items: Sequence[Item]) -> list[Any]:
        """The pictures that are not in the sums yet."""
        return [item for item in items if (item.name, item.bytes) not in self.inside]

    def run(
        self, items: Sequence[Any], batch: int, step: Callable[[list[Any]], None], say: Callable[[int], None]
    ) -> None:
        """Call `step` with groups of what is not inside yet (it calls `add`), and say how many are done.

        What is done is saved at the end, also when that comes by Ctrl-C or an error.
        """
        left = self.left(items)
        done = len(items) - len(left)
        say(done)
        try:
            for first in range(0, len(left), batch):
                group = left[first : first + batch]
                step(group)
                done += len(group)
                say(done)
        finally:
            if self._unsaved and not self._adding:
                self.save()

    def add(self, items: Sequence[Item], parts: Mapping[str, Callable[[], Tensor]]) -> None:
        """Add what a group of pictures brings, all of it or, interrupted, nothing that is saved."""
        self._adding = True
        for name, part in parts.items():
            value = part().to("cpu", torch.float64)
            if name in self.matrices:
                self.matrices[name] += value
            else:
                self.matrices[name] = value.clone()
        self.inside.update((item.name, item.bytes) for item in items)
        self._adding, self._unsaved = False, True
        if time.monotonic() - self._saved_at > EVERY:
            self.save()

    def save(self) -> None:
        """Write the file, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        staging = self.path.with_name(f".{self.path.name}.tmp")
        header = {
            "kind": KIND,
            "version": VERSION,
            "settings": self.settings,
            "pictures": json.dumps(sorted(self.inside)),
        }
        save_file({name: matrix.contiguous() for name, matrix in self.matrices.items()}, staging, metadata=header)
        staging.replace(self.path)
        self._saved_at, self._unsaved = time.monotonic(), False

    def _load(self, items: Sequence[Item]) -> None:
        try:
            with safe_open(self.path, framework="pt") as file:
                header = file.metadata() or {}
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
        except (SafetensorError, OSError) as error:
            raise UsageError(f"{self.path}: cannot be read ({error}); say --fresh to start again") from error
        if header.get("kind") != KIND or header.get("version") != VERSION:
            raise UsageError(f"{self.path}: not sums of an analysis of this version; choose another -o")
        if header["settings"] != self.settings:
            before, now = json.loads(header["settings"]), json.loads(self.settings)
            changed = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
            raise UsageError(
                f"{self.path}: holds sums under other settings ({', '.join(changed)} differ); "
                "choose another -o, or say --fresh to drop them"
            )
        inside = {(name, size) for name, size in json.loads(header["pictures"])}
        if gone := sorted(inside - {(item.name, item.bytes) for item in items}):
            raise UsageError(
                f"{self.path}: holds {gone[0][0]}, which is no longer among the pictures or has changed; "
                "a sum cannot lose a picture: choose another -o, or say --fresh to start again"
            )
        self.matrices, self.inside = found, inside
