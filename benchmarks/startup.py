"""How long does a person wait for `fusionkit list` and `fusionkit validate`, beside importing torch?

    python benchmarks/startup.py --out benchmarks/results/cpu/startup.json

Each command is a fresh interpreter; all are visited in shuffled rounds after one that warms the page cache. Wall time
and processor time (user and system) are stored: on a busy machine only the second means anything.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "fusionkit list": ["-m", "fusionkit", "list"],
    "fusionkit validate come_vl": ["-m", "fusionkit", "validate", "come_vl"],
    "fusionkit plan come_vl": ["-m", "fusionkit", "plan", "come_vl"],
    "import torch": ["-c", "import torch"],
}


def run(words: list[str]) -> tuple[float, float]:
    """Wall and processor milliseconds of one interpreter."""
    # As installed: a shell may forbid bytecode to be written, and then every run would compile what changed.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True, env=environment)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return 1e3 * wall, 1e3 * processor


def quartiles(values: list[float]) -> dict[str, float]:
    p25, p50, p75 = statistics.quantiles(values, n=4, method="inclusive")
    return {"min": round(min(values), 1), "p25": round(p25, 1), "p50": round(p50, 1), "p75": round(p75, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    order = random.Random(0)
    for number in range(options.rounds + 1):
        names = list(COMMANDS)
        order.shuffle(names)
        for name in names:
            took = run(COMMANDS[name])
            if number:
                found[name].append(took)
    torch_cpu = statistics.median(processor for _, processor in found["import torch"])
    rows: list[dict[str, Any]] = []
    for name, took in found.items():
        processor = quartiles([each for _, each in took])
        rows.append(
            {
                "command": name,
                "wall_ms": quartiles([each for each, _ in took]),
                "cpu_ms": processor,
                "import_torch_over_this": round(torch_cpu / processor["p50"], 1),
            }
        )
        print(f"{name}: wall {rows[-1]['wall_ms']['p50']} ms, processor {processor['p50']} ms", file=sys.stderr)
    command = shlex.join(["python", *sys.argv])
    stored = {
        "command": command,
        "date": time.strftime("%Y-%m-%d"),
        "python": sys.version.split()[0],
        "load": [round(value, 1) for value in os.getloadavg()],
        "rounds": options.rounds,
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
