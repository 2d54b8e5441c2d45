"""What unit tests share."""

from __future__ import annotations

import socket
from pathlib import Path

import huggingface_hub.constants
import pytest


@pytest.fixture
def empty_hub_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache of the hub that holds nothing; the test decides about the network."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture
def unreachable_hub(monkeypatch: pytest.MonkeyPatch, empty_hub_cache: Path) -> Path:
    """No copy of anything, and a network that does not know the hub's name. The folder is the cache's."""

    def unknown(host: str, port: int) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("fusionkit.hub.getproxies", dict)
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    return empty_hub_cache
