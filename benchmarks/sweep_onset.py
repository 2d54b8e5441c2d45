"""Why do the scores of a small sweep differ so much between seeds? When each run's answers begin to depend on the picture.

    python benchmarks/sweep_onset.py runs/figure6 runs/table4 runs/table5 --out benchmarks/results/cpu/sweeps/onset.json

The loss of a run stays on a plateau (the answer's form is learnt, not what the picture shows) and then falls. The onset is
the first logged step of the last stage whose loss is below --below. Written are the onset and the score of every run, the
rank correlation of the two over all runs and inside variants (ranks among the runs of a variant, averaged), and how much
of the score's variance lies between variants, beside what it would be if variants did not matter. A run that never falls has no onset and ranks last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Run = dict[str, Any]


def read(folder: Path, metric: str, below: float) -> list[Run]:
    """The runs that a sweep made itself; those taken from another sweep are told there."""
    found = []
    for path in sorted(folder.glob("*-*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        if "taken_from" in run:
            continue
        lines = (path.with_suffix("") / "log.jsonl").read_text(encoding="utf-8").splitlines()
        logged = [entry for entry in map(json.loads, lines) if "loss" in entry and "stage" in entry]
        last = [entry for entry in logged if entry["stage"] == logged[-1]["stage"]]
        found.append(
            {
                "sweep": folder.name,
                "variant": run["variant"],
                "seed": run["seed"],
                metric: round(run["scores"][metric], 4),
                "onset": next((entry["step"] for entry in last if entry["loss"] < below), None),
                "last_loss": round(last[-1]["loss"], 4),
            }
        )
    return found


def ranks(values: Sequence[float]) -> list[float]:
    """From 0; equal values share their mean rank."""
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) - 1) / 2 for value in values]


def rank_correlation(runs: Sequence[Run], metric: str) -> float | None:
    """Spearman's; None where all are equal."""
    onsets = ranks([float("inf") if run["onset"] is None else run["onset"] for run in runs])
    scores = ranks([run[metric] for run in runs])
    if len(set(onsets)) < 2 or len(set(scores)) < 2:
        return None
    return statistics.correlation(onsets, scores)


def summary(runs: Sequence[Run], metric: str) -> dict[str, Any]:
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run["sweep"], run["variant"]), []).append(run)
    mean = statistics.fmean(run[metric] for run in runs)
    between = sum(len(mine) * (statistics.fmean(run[metric] for run in mine) - mean) ** 2 for mine in groups.values())
    inside = [value for mine in groups.values() if (value := rank_correlation(mine, metric)) is not None]
    over_all = rank_correlation(runs, metric)
    return {
        "runs": len(runs),
        "without_onset": sum(run["onset"] is None for run in runs),
        "rank_correlation": None if over_all is None else round(over_all, 3),
        "rank_correlation_inside_variants": round(statistics.fmean(inside), 3) if inside else None,
        "variance_between_variants": round(between / sum((run[metric] - mean) ** 2 for run in runs), 3),
        "variance_between_variants_by_chance": round((len(groups) - 1) / (len(runs) - 1), 3),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweeps", nargs="+", type=Path, metavar="FOLDER", help="outputs of `fusionkit sweep -o`")
    parser.add_argument("--metric", default="box_accuracy")
    parser.add_argument("--below", type=float, default=1.5, help="the loss that ends the plateau")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    runs = [run for folder in options.sweeps for run in read(folder, options.metric, options.below)]
    if len(runs) < 3:
        parser.error(f"{', '.join(map(str, options.sweeps))}: {len(runs)} runs of sweeps; at least 3 are needed")
    found = {"metric": options.metric, "below": options.below, **summary(runs, options.metric), "each": runs}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({name: value for name, value in found.items() if name != "each"}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
