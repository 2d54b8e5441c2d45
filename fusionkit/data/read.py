"""Read a JSONL file of pictures and conversations as samples, without a recipe."""

from __future__ import annotations

from pathlib import Path

from fusionkit.blocks.datasets.jsonl import JsonlDataset
from fusionkit.blocks.datasets.specs import JsonlConfig
from fusionkit.sample import Sample


def open_jsonl(path: str | Path) -> JsonlDataset:
    """The file as a dataset; raises DataError for the file now, for a row when it is read."""
    return JsonlDataset(JsonlConfig(path=str(path)))


def read_jsonl(path: str | Path) -> list[Sample]:
    """All samples of a file in the documented format; raises DataError naming file and line."""
    dataset = open_jsonl(path)
    return [dataset[index] for index in range(len(dataset))]
