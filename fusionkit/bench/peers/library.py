"""Libraries that peers come from. None is a dependency: `pip install 'fusionkit[peers]'` brings them."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from types import ModuleType

from torch import nn

from fusionkit.bench.peers.peer import UnsuitableError


def library(name: str) -> ModuleType:
    """The imported library. Raises UnsuitableError with the reason where it cannot be imported."""
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        package = name.partition(".")[0].replace("_", "-")
        raise UnsuitableError(f"{package} is not installed (pip install {package})")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a library does with this torch is for its authors to read
            return importlib.import_module(name)
    except Exception as error:  # a library may fail in any way against this torch; that is its reason
        raise UnsuitableError(f"{name} does not import here: {type(error).__name__}: {error}") from error


def require_own_keys(key: nn.Linear, query: nn.Linear, who: str) -> None:
    """Raises UnsuitableError where several heads share keys and values."""
    if key.out_features != query.out_features:
        raise UnsuitableError(f"{who} has no grouped heads, or groups them in another order")
