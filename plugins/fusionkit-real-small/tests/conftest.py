"""What the tests of real weights need, and why they are skipped where it is missing."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from fusionkit_real_small.packages import BACKBONE, SMOLLM2

ONE_THREAD = 1


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(ONE_THREAD)


@pytest.fixture(scope="session")
def backbone() -> None:
    """Skips without the package that holds the backbone, or the one that reads it."""
    _need(BACKBONE.find() is not None, f"{BACKBONE.package} is not installed: {BACKBONE.install}")
    _need(_installed("onnx"), "onnx is not installed: pip install onnx")


@pytest.fixture(scope="session")
def smollm2() -> None:
    """Skips without the package that holds SmolLM2, or the one that reads it."""
    _need(SMOLLM2.find() is not None, f"{SMOLLM2.package} is not installed: {SMOLLM2.install}")
    _need(_installed("gguf"), "gguf is not installed: pip install gguf")


@pytest.fixture(scope="session")
def pictures() -> None:
    """Skips without scikit-image."""
    _need(_installed("skimage"), "scikit-image is not installed: pip install scikit-image")


@pytest.fixture
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for one test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _need(there: bool, reason: str) -> None:
    if not there:
        pytest.skip(reason)
