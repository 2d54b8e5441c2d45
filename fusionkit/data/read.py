"""Read a JSONL file of pictures and conversations as samples, without a recipe."""

from __future__ import annotations

from pathlib import Path

from fusionkit import registry
from fusionkit.plugin import BlockSite
from fusionkit.sample import Sample


def read_jsonl(path: str | Path) -> list[Sample]:
    """All samples of a file in the documented format; raises DataError naming file and line."""
    spec = registry.spec("datasets", "jsonl")
    dataset = registry.factory(spec)(spec.config.model_validate({"type": "jsonl", "path": str(path)}), BlockSite())
    return [dataset[index] for index in range(len(dataset))]
