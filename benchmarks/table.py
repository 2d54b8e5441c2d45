"""Print a stored run as a Markdown table: `python benchmarks/table.py benchmarks/results/cpu/mix_step.jsonl`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fusionkit.bench.table import markdown

for name in sys.argv[1:]:
    print(markdown(json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()))
