"""Golden files: numbers recorded from the released CoME-VL modules, run at small sizes with fixed seeds.

A file holds `param.*`, `input.*`, `output.*` and `grad.*` tensors under the official names, gradients being those of
sum(output * input.cotangent), and the hyperparameters as JSON in its metadata.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from torch import Tensor


@dataclass(frozen=True)
class Golden:
    """One recorded run."""

    hparams: dict[str, Any]
    tensors: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def params(self, ours: Mapping[str, str]) -> dict[str, Tensor]:
        """The parameters that our state dict has, `ours` mapping official prefixes to our own."""
        found = {}
        for name, tensor in self.tensors.items():
            official = name.removeprefix("param.")
            prefix = max((old for old in ours if official.startswith(old)), key=len, default=None)
            if name.startswith("param.") and prefix is not None:
                found[ours[prefix] + official.removeprefix(prefix)] = tensor
        return found


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Golden]:
    """Load a golden file by its name."""

    def load(name: str) -> Golden:
        with safe_open(Path(__file__).parent / "goldens" / f"{name}.safetensors", "pt") as file:
            hparams = json.loads(file.metadata()["hparams"])
            return Golden(hparams, {key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118

    return load
