"""What transformers says of a decoder that the table does not list: its config and the size of its tokenizer."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoTokenizer

from fusionkit.errors import BuildError


def ask(name: str) -> dict[str, Any]:
    """Facts of a hub id from the local cache or the network; raises BuildError when neither has it."""
    try:
        config = AutoConfig.from_pretrained(name).to_dict()
        entries = len(AutoTokenizer.from_pretrained(name))
    except (OSError, ValueError) as error:
        raise BuildError(f"language model '{name}' is neither in the local cache nor to be had: {error}") from error
    return {"config": config, "tokenizer_size": entries, "licence": "unknown: see its card"}
