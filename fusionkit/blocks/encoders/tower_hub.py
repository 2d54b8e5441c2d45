"""What transformers says of a vision tower that the table does not list: its config and how pixels are prepared."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoImageProcessor

from fusionkit.errors import BuildError


def ask(name: str) -> dict[str, Any]:
    """Facts of a hub id from the local cache or the network; raises BuildError when neither has it."""
    try:
        config = AutoConfig.from_pretrained(name).to_dict()
        preprocessor = AutoImageProcessor.from_pretrained(name).to_dict()
    except (OSError, ValueError) as error:
        raise BuildError(f"vision tower '{name}' is neither in the local cache nor to be had: {error}") from error
    return {"config": config, "preprocessor": preprocessor, "licence": "unknown: see its card"}
