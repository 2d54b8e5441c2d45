"""Compare two stored runs of `fusionkit bench`: `python benchmarks/compare.py old.jsonl new.jsonl --fail-over 10%`.

A row has become slower if its median time grew by more than the limit, as such and relative to the limits each run
measured for its machine, and by more than either run's noise (the block run twice). Rows that failed or went missing
count as failures. Exit code 0: none; 1: some; 2: the runs cannot be compared.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
CONTROL = "fusionkit_again"
SAME = ("schema", "device", "kind", "threads")
"""What both runs must have in common for times to mean anything."""


def main(words: Sequence[str] | None = None) -> int:
    """Print the comparison and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument(
        "--fail-over", type=percent, default=0.10, metavar="10%", help="allowed growth of a median time"
    )
    options = parser.parse_args(words)
    old, new = read(options.old), read(options.new)
    if differences := [name for name in SAME if old[0].get(name) != new[0].get(name)]:
        for name in differences:
            print(f"error: {name} was {old[0].get(name)}, is {new[0].get(name)}: not comparable", file=sys.stderr)
        return 2
    faults = 0
    for line, is_fault in compare(old, new, options.fail_over):
        print(f"{'FAIL' if is_fault else 'ok  '}  {line}")
        faults += is_fault
    print(f"{faults} of {len(list(keyed(old)))} rows fail at {100 * options.fail_over:g} %")
    return 1 if faults else 0


def percent(text: str) -> float:
    """0.1 from `10%` or `0.1`."""
    value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def read(path: Path) -> list[Row]:
    """The rows of a stored run."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not rows:
        sys.exit(f"error: {path} holds no rows")
    return rows


def keyed(rows: Sequence[Row]) -> dict[str, Row]:
    """Rows of variants by what they measured."""
    fields = ("address", "block", "variant", "dtype", "mode", "backend", "shape", "config")
    return {
        json.dumps([row[field] for field in fields], sort_keys=True): row
        for row in rows
        if row["block"] != "ceiling" and row["variant"] is not None
    }


def noise_of(rows: Sequence[Row], like: Row) -> float:
    """How far the block run twice was from itself in the case of a row."""
    same = ("address", "dtype", "mode", "shape", "config")
    ratios = [
        row["ratio"]
        for row in rows
        if row["variant"] == CONTROL and row["ratio"] and all(row[field] == like[field] for field in same)
    ]
    return max((abs(ratio[name] - 1) for ratio in ratios for name in ("p25", "p50", "p75")), default=0.0)


def compare(old: Sequence[Row], new: Sequence[Row], limit: float) -> list[tuple[str, bool]]:
    """A line for every row of the old run, and whether it is a failure."""
    after, lines = keyed(new), []
    for key, was in keyed(old).items():
        name = f"{was['address']} {was['variant']} {was['dtype']} {was['mode']}"
        now = after.get(key)
        if was["status"] != "ok":
            lines.append((f"{name}: was {was['status']}", False))
        elif now is None or now["status"] != "ok":
            state = "missing" if now is None else f"{now['status']}: {now['reason']}"
            lines.append((f"{name}: now {state}", True))
        else:
            raw = now["ms"]["p50"] / was["ms"]["p50"]
            shares = was["roofline_frac"], now["roofline_frac"]
            relative = shares[0] / shares[1] if all(shares) else raw
            noise = max(noise_of(old, was), noise_of(new, now))
            text = (
                f"{name}: {raw:.3f}x the time, {relative:.3f}x relative to each run's limits, noise {100 * noise:.0f} %"
            )
            lines.append((text, min(raw, relative) - 1 > max(limit, noise)))
    return lines


if __name__ == "__main__":
    sys.exit(main())
