"""Two hundred distributions of five blocks each: listing them reads metadata, loads nothing and stays quick."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

DISTRIBUTIONS, BUDGET = 200, 0.400

FAMILIES = ("encoders", "mixers", "adapters", "connectors", "metrics")
TRAP = 'from pathlib import Path\nPath(__file__).with_name("loaded").write_text(__name__)\n'


def seconds(command: list[str], environment: dict[str, str]) -> tuple[float, str]:
    """The processor time of one run, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, check=True, env=environment, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def test_list_is_quick_and_loads_none(site: Any) -> None:
    for number in range(DISTRIBUTIONS):
        package = f"vend_{number}"
        points = {f"fusionkit.{family}": {f"vend{number}.{family}": f"{package}:SPEC"} for family in FAMILIES}
        site.install(f"vend-{number}", entry_points=points, modules={f"{package}.py": TRAP})
    environment = {**os.environ, "PYTHONPATH": str(site.folder)}
    tool = str(Path(sys.executable).with_name("fusionkit"))
    runs = []
    for _ in range(4):
        bare, _ = seconds([sys.executable, "-c", "pass"], environment)
        listed, printed = seconds([tool, "list", "--json"], environment)
        runs.append((bare, listed))
    theirs = [row for row in json.loads(printed)["blocks"] if row["distribution"].startswith("vend-")]
    assert len(theirs) == DISTRIBUTIONS * len(FAMILIES)
    assert {row["state"] for row in theirs} == {"ok"}
    assert not (site.folder / "loaded").exists()
    # On a machine that is slower than the one the budget is for, it grows as a bare Python does.
    slowness = max(1.0, statistics.median(bare for bare, _ in runs) / 0.020)
    assert statistics.median(listed for _, listed in runs) <= BUDGET * slowness
