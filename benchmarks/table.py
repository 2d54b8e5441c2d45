"""Print a stored run as a Markdown table: `python benchmarks/table.py benchmarks/results/cpu/mix_step.jsonl`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fusionkit.bench.answers import answer_table
from fusionkit.bench.table import COLUMNS, NUMBERS, cells, markdown


def table(path: Path) -> str:
    """A line for every variant; of a run with `--answers`, one for every recipe."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if rows[0]["block"] != "model":
        return markdown(COLUMNS, map(cells, rows), NUMBERS)
    lengths = sorted({int(row["variant"].split("_")[1]) for row in rows if row["variant"].startswith("answer_")})
    columns, lines = answer_table(rows, lengths)
    return markdown(columns, lines, frozenset(columns) - {"recipe", "note"})


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(table(Path(name)))
