"""Draw a stored run: `python benchmarks/plot.py benchmarks/results/cpu/come_vl.jsonl come_vl.png`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fusionkit.bench.plot import draw

stored, picture = map(Path, sys.argv[1:])
draw([json.loads(line) for line in stored.read_text(encoding="utf-8").splitlines()], picture)
