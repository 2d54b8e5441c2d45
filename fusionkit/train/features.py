"""Layers of frozen encoders kept on disk, so that a picture is encoded once however many runs study what follows.

One file for each crop, named by the hash of its pixels, in a folder named by the hash of the encoder's weights and
config and by the layers. A file appears in one rename: an interrupted run leaves whole files, and several runs may
share a folder.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fusionkit.errors import DataError, UsageError
from fusionkit.model.modeling import FusionVLM
from fusionkit.recipe.plan import StreamPlan

LAYERS = "layers"


class KeptLayers:
    """`forward_layers` of a frozen encoder, read from disk where a crop is known; unknown ones are computed in one batch.

    Shapes: one file holds [L, N, D], the L layers of one crop. Raises DataError when a file cannot be written or is
    not what was written.
    """

    def __init__(self, encoder: Any, plan: StreamPlan, folder: Path) -> None:
        self.compute = encoder.forward_layers
        self.layers = plan.layers
        self.shape = (len(plan.layers), plan.stack.grid.tokens, plan.stack.width)
        self.folder = folder / f"{plan.encoder.type}-{_identity(encoder, plan)}"

    def __call__(self, x_BCHW: Tensor, layers: Sequence[int], **per_crop: Tensor | None) -> list[Tensor]:
        given = {name: value for name, value in per_crop.items() if value is not None}
        if tuple(layers) != tuple(self.layers):
            found: list[Tensor] = self.compute(x_BCHW, layers, **given)
            return found
        crops = zip(x_BCHW, *given.values(), strict=True)
        files = [self.folder / f"{'-'.join(map(_digest, crop))}.safetensors" for crop in crops]
        missing = {file: index for index, file in enumerate(files) if not file.exists()}
        if missing:
            rows = list(missing.values())
            parts = {name: value[rows] for name, value in given.items()}
            made_LBND = torch.stack(self.compute(x_BCHW[rows], layers, **parts))
            for file, made_LND in zip(missing, made_LBND.unbind(1), strict=True):
                self._write(file, made_LND)
        kept_LBND = torch.stack([self._read(file) for file in files], dim=1)
        return list(kept_LBND.to(x_BCHW.device).unbind(0))

    def _read(self, file: Path) -> Tensor:
        try:
            kept_LND = load_file(file)[LAYERS]
        except (OSError, SafetensorError, KeyError) as error:
            raise DataError(f"{file}: cannot be read ({error}); delete it, it is computed anew") from error
        if tuple(kept_LND.shape) != self.shape:
            raise DataError(f"{file}: has shape {tuple(kept_LND.shape)}, expected {self.shape}; delete it")
        return kept_LND

    def _write(self, file: Path, made_LND: Tensor) -> None:
        staging = file.with_name(f".{file.stem}.{os.getpid()}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file({LAYERS: made_LND.contiguous().cpu()}, staging)
            staging.rename(file)
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                staging.unlink()
            raise DataError(
                f"{file}: cannot be written ({getattr(error, 'strerror', None) or error}); free space there, or train without --features"
            ) from error


@contextmanager
def keep_features(
    model: FusionVLM, folder: Path, sharded: bool, say: Callable[[str], None] = lambda _: None
) -> Iterator[None]:
    """Inside, encoders that do not learn read and keep their layers in `folder`.

    `say` is told when there is none. Raises UsageError when the model is divided among processes.
    """
    if sharded:
        raise UsageError("--features cannot be used with --shard fsdp2: its processes must run every block together")
    frozen = {
        name: stream
        for name, stream in model.streams.items()
        if not any(parameter.requires_grad for parameter in stream.encoder.parameters())  # type: ignore[union-attr]
    }
    if not frozen:
        say("every encoder learns in this stage, so --features keeps nothing")
    try:
        for name, stream in frozen.items():
            stream.encoder.forward_layers = KeptLayers(stream.encoder, model.plan.streams[name], folder)  # type: ignore[union-attr]
        yield
    finally:
        for stream in frozen.values():
            stream.encoder.__dict__.pop("forward_layers", None)


def _identity(encoder: Any, plan: StreamPlan) -> str:
    """A hash of what makes the layers what they are: config, weights, number format, which layers."""
    digest = hashlib.blake2b(digest_size=12)
    digest.update(plan.encoder.config.model_dump_json().encode())
    digest.update(repr(tuple(plan.layers)).encode())
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        digest.update(_bytes(value))
    return digest.hexdigest()


def _digest(x_CHW: Tensor) -> str:
    """A hash of one crop's normalised pixels."""
    return hashlib.blake2b(f"{x_CHW.dtype}".encode() + _bytes(x_CHW), digest_size=16).hexdigest()


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
