"""Weights of a transformers vision tower, from a folder or the hub, loaded strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from fusionkit.blocks.encoders.tower_facts import PREPROCESSOR, folder_statistics
from fusionkit.errors import BuildError
from fusionkit.hub import cached_file, check_reachable, misfits, not_to_be_had
from fusionkit.plugin import EncoderInfo

PRETRAINED, RANDOM = "pretrained", "random"
_WAYS_ON = "give `model:` (or `weights:`) the folder of a snapshot"


def load_folder(factory: Any, folder: Path, described: PreTrainedConfig, info: EncoderInfo) -> PreTrainedModel:
    """A tower with the weights of a folder; raises BuildError if there are none or they do not fit."""
    try:
        return _load(factory, str(folder), described, info, local_files_only=True)
    except OSError as error:
        raise BuildError(f"weights '{folder}': no weights in the folder: {_first_line(error)}") from error


def load_hub(
    factory: Any, hub_id: str, described: PreTrainedConfig, info: EncoderInfo, revision: str | None
) -> PreTrainedModel:
    """A tower with the weights of a hub id, from the cache if they are there; raises BuildError if they cannot be had."""
    try:
        return _load(factory, hub_id, described, info, local_files_only=True, revision=revision)
    except OSError:
        # Not in the cache, or not all of it.
        check_reachable(hub_id, _WAYS_ON)
    try:
        return _load(factory, hub_id, described, info, revision=revision)
    except OSError as error:
        raise not_to_be_had(hub_id, _first_line(error), _WAYS_ON) from error


def _load(factory: Any, source: str, described: PreTrainedConfig, info: EncoderInfo, **options: Any) -> PreTrainedModel:
    """Load strictly: a tensor of the tower that is missing, left over or of another shape is a BuildError.

    A two-tower model's other tower, and heads, may be left over.
    """
    try:
        model, report = factory.from_pretrained(
            source,
            config=described,
            dtype=torch.get_default_dtype(),
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, by name
            **options,
        )
    except (RuntimeError, ValueError) as error:
        raise BuildError(f"weights of '{source}' do not fit {info.name}: {_first_line(error)}") from error
    own = {name for name, _ in model.named_children()} | {model.base_model_prefix}
    report["unexpected_keys"] = [key for key in report.get("unexpected_keys", ()) if key.split(".")[0] in own]
    if faults := misfits(report):
        raise BuildError(f"weights of '{source}' do not fit {info.name}: {faults}")
    return cast(PreTrainedModel, model)


def check_statistics(source: str, revision: str | None, info: EncoderInfo) -> None:
    """Raise BuildError when the model's own files, in a folder or the cache, say that it is fed other pixels than planned."""
    folder = Path(source).expanduser()
    if not folder.is_dir():
        file = cached_file(source, PREPROCESSOR, revision)
        if file is None:
            return
        folder = file.parent
    try:
        own = folder_statistics(folder)
    except ValueError as error:
        raise BuildError(str(error)) from error
    if own is not None and own != (info.mean, info.std):
        raise BuildError(
            f"{folder / PREPROCESSOR} says mean {list(own[0])} and std {list(own[1])}; planned are {list(info.mean)} and "
            f"{list(info.std)}; if that is meant, give them as `mean` and `std`"
        )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
