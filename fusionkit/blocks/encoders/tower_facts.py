"""Where the facts of a transformers vision tower come from: a recipe, a folder or the built-in table. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusionkit import architectures
from fusionkit.blocks.encoders.counts import Architecture
from fusionkit.blocks.encoders.towers import architecture, read_statistics, read_tower
from fusionkit.errors import ShapeError

LIBRARY = "transformers_vision"
"""Their section of the built-in table."""

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
Statistics = tuple[tuple[float, ...], tuple[float, ...]]
HALVES: Statistics = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""What a tower that is described, not loaded, is fed unless the recipe says otherwise: pixels in -1..1."""


def tower_architecture(model: str | None, config: Mapping[str, Any] | None, given: Statistics | None) -> Architecture:
    """The facts of a tower; `given` statistics are the recipe's, and go before the model's own.

    Raises ShapeError when the model is unknown, its files cannot be read, or it states no statistics.
    """
    field = "config" if model is None else "model"
    try:
        tower = read_tower(tower_config(model, config), where=model or "config")
        own = None if model is None else _own_statistics(model)
    except ValueError as error:
        raise ShapeError(str(error), field=field) from error
    statistics = given or own or (HALVES if model is None else None)
    if statistics is None:
        raise ShapeError(
            f"{Path(str(model)) / PREPROCESSOR}: no such file, so the model's mean and std are not known",
            field="model",
            hint="copy it from where the model came from, or give `mean` and `std`",
        )
    return architecture(tower, statistics, _licence(model), hub_id="" if _folder(model) else str(model or ""))


def tower_config(model: str | None, config: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The transformers config fields the recipe stands for; raises ShapeError naming the ways on if they are not known."""
    if config is not None:
        return config
    folder = _folder(model)
    if folder is not None:
        return _read(folder / CONFIG)
    entry = architectures.facts(LIBRARY, str(model))
    if entry is None:
        near = architectures.near(LIBRARY, str(model))
        raise ShapeError(
            f"vision tower '{model}' is neither a folder here nor in the built-in table"
            + (f"; listed and similar: {', '.join(near)}" if near else ""),
            field="model",
            hint="download it and give its folder, give its fields under `config:`, or run `fusionkit plan --meta`",
        )
    found: Mapping[str, Any] = entry["config"]
    return found


def folder_statistics(folder: Path) -> Statistics | None:
    """mean and std that a model's folder states, if it states any; raises ValueError for a file that cannot be meant."""
    file = folder / PREPROCESSOR
    return read_statistics(_read(file), where=str(file)) if file.is_file() else None


def _own_statistics(model: str) -> Statistics | None:
    folder = _folder(model)
    if folder is not None:
        return folder_statistics(folder)
    entry = architectures.facts(LIBRARY, model) or {}
    return read_statistics(entry["preprocessor"], where=model) if "preprocessor" in entry else None


def _licence(model: str | None) -> str:
    if model is None:
        return "none: trained from scratch"
    if _folder(model) is not None:
        return "unknown: see its folder"
    return str((architectures.facts(LIBRARY, model) or {}).get("licence", "unknown: see its card"))


def _folder(model: str | None) -> Path | None:
    path = Path(model).expanduser() if model is not None else None
    return path if path is not None and path.is_dir() else None


def _read(file: Path) -> Mapping[str, Any]:
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ShapeError(f"{file}: cannot be read ({error})", field="model") from error
    if not isinstance(facts, dict):
        raise ShapeError(f"{file}: expected a JSON object", field="model")
    return facts
