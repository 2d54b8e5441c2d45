"""Layers of a frozen encoder, kept on disk for pictures that come again.

One .npy file for each picture, named by the hash of its pixels, in a folder named by the weights, the layers and the
number format. A file appears in one rename, so an interrupted run leaves whole files, and several may write at once.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusionkit.errors import DataError
from fusionkit_real_small.packages import cache_folder, discard

Compute = Callable[[Tensor], list[Tensor]]


class FeatureStore:
    """Shapes: one file holds [L, N, D], the L layers of one crop.

    Raises DataError when a file cannot be written or is not what was written.
    """

    def __init__(self, weights: str, layers: Sequence[int], shape: tuple[int, int, int], dtype: str) -> None:
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.folder = cache_folder() / "features" / f"{weights}-{'-'.join(map(str, layers))}-{shape[1]}-{dtype}"

    def layers(self, x_BCHW: Tensor, compute: Compute) -> list[Tensor]:
        """One x_BND per layer: read where the picture is known, otherwise computed (all unknown ones in one batch)."""
        files = [self.folder / f"{pixels_digest(x_CHW)}.npy" for x_CHW in x_BCHW]
        missing = {file: index for index, file in enumerate(files) if not file.exists()}
        if missing:
            found_LBND = torch.stack(compute(x_BCHW[list(missing.values())]))
            for file, kept_LND in zip(missing, found_LBND.unbind(1), strict=True):
                self._write(file, kept_LND)
        kept_BLND = np.stack([self._read(file) for file in files])
        x_LBND = torch.from_numpy(kept_BLND).transpose(0, 1).to(x_BCHW.device, x_BCHW.dtype)
        return list(x_LBND.unbind(0))

    def count(self) -> int:
        """How many pictures are kept."""
        return sum(1 for _ in self.folder.glob("*.npy"))

    def _read(self, file: Path) -> np.ndarray[Any, Any]:
        try:
            kept: np.ndarray[Any, Any] = np.load(file, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{file}: cannot be read ({error}); delete it, it is computed anew") from error
        if kept.shape != self.shape or kept.dtype != self.dtype:
            raise DataError(
                f"{file}: {kept.dtype} {kept.shape}, expected {self.dtype} {self.shape}; delete it, it is computed anew"
            )
        return kept

    def _write(self, file: Path, kept_LND: Tensor) -> None:
        array = kept_LND.float().cpu().numpy().astype(self.dtype)
        if not np.isfinite(array).all():
            raise DataError(f"{file}: features do not fit {self.dtype}; set `cache: float32` (or none)")
        partial = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as stream:
                np.save(stream, array)
            partial.rename(file)
        except OSError as error:
            discard(partial)
            raise DataError(
                f"{file}: cannot be written ({error.strerror or error}); free space there, set XDG_CACHE_HOME, or `cache: none`"
            ) from error


def pixels_digest(x_CHW: Tensor) -> str:
    """A hash of one crop's normalised pixels."""
    pixels = x_CHW.detach().float().cpu().contiguous().numpy()
    return hashlib.blake2b(pixels.tobytes(), digest_size=16).hexdigest()


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """A short hash of an encoder's weights: features of other weights are other features."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
