"""What a lock says of the machine: versions, and for every block its distribution and the hashes of its files."""

from __future__ import annotations

import importlib.util
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from fusionkit import registry
from fusionkit.plugin import BlockSpec
from fusionkit.recipe.lock_data import file_hash
from fusionkit.recipe.schema import Recipe

LIBRARIES = ("fusionkit", "numpy", "safetensors", "timm", "tokenizers", "torch", "transformers")


def environment(recipe: Recipe) -> dict[str, Any]:
    """Versions of Python, libraries and plugins, and where each block of the recipe comes from. Imports no block."""
    blocks: dict[str, Any] = {}
    versions = {name: _version(name) for name in LIBRARIES}
    for placed in recipe.blocks():
        spec = placed.spec()
        distribution, version = registry.distribution(spec.family, spec.name)
        versions.setdefault(distribution, version)
        blocks[placed.address] = {
            "block": spec.address,
            "distribution": distribution,
            "version": version,
            "files": _files(spec),
        }
    return {
        "python": platform.python_version(),
        "platform": f"{sys.platform}-{platform.machine()}",
        "distributions": dict(sorted(versions.items())),
        "blocks": blocks,
    }


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def _files(spec: BlockSpec) -> dict[str, str]:
    """Module -> hash of its file, for the module of the config and planner and for the factory's."""
    modules = dict.fromkeys((spec.config.__module__, spec.factory.partition(":")[0]))
    return {module: _module_hash(module) for module in modules}


def _module_hash(module: str) -> str:
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        found = None
    if found is None or not found.has_location or found.origin is None:
        return "no file"
    return file_hash(Path(found.origin))
