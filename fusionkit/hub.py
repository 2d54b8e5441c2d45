"""Weights from the Hugging Face hub: say at once, and usefully, when they are not to be had or do not fit."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants, try_to_load_from_cache

from fusionkit.errors import BuildError


def cached_file(hub_id: str, name: str, revision: str | None = None) -> Path | None:
    """The local copy of one file of a hub repository, if there is one; asks no network."""
    found = try_to_load_from_cache(hub_id, name, revision=revision)
    return Path(found) if isinstance(found, str) else None


def check_reachable(hub_id: str, ways_on: str) -> None:
    """Raise BuildError when the hub cannot be reached: its own client would retry for most of a minute first."""
    if (reason := unreachable()) is not None:
        raise not_to_be_had(hub_id, reason, ways_on)


def unreachable() -> str | None:
    """Why the hub cannot be reached; None where it can, as far as asking for its address tells."""
    host = urlsplit(constants.ENDPOINT).hostname or ""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if getproxies():
        return None
    try:
        socket.getaddrinfo(host, 443)
    except OSError as error:
        return f"{host} cannot be reached ({error})"
    return None


def not_to_be_had(hub_id: str, reason: str, ways_on: str) -> BuildError:
    """The error for weights that are neither in the cache nor to be downloaded."""
    return BuildError(
        f"weights of '{hub_id}' are not in the local cache ({constants.HF_HUB_CACHE}) and cannot be downloaded: {reason}; "
        f"run once with a network, {ways_on}, or say `weights: random`"
    )


def misfits(report: Mapping[str, Any]) -> str:
    """What a loading report of transformers says is missing, left over or of another shape, first names of each; or ''."""
    return "; ".join(
        f"{kind}: {', '.join(sorted(map(str, keys))[:3])}"
        for kind in ("missing", "unexpected", "mismatched")
        if (keys := report.get(f"{kind}_keys"))
    )
