"""Does fusing two encoders beat each alone? Same tokens, decoder, data and steps, several seeds, paired.

    python benchmarks/fused_vs_single.py --seeds 3 --out benchmarks/results/cpu/fused_vs_single.json

Trains `tiny_demo`, `tiny_semantic` and `tiny_spatial` with every seed, scores them on unseen pictures and stores means with
95 % intervals (Student's t over seeds), the paired differences to the fused model, and the fused model's scores when it
is shown the wrong picture. The encoders are complementary by construction (stage 0 teaches one what things are, the
other where their edges are), so this shows a mechanism; it is no evidence for real encoders.

Finished runs are kept in --runs and not repeated.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

import fusionkit
from fusionkit.evaluate.run import evaluate
from fusionkit.model.checkpoint import load_checkpoint
from fusionkit.train.run import train

RECIPES = ("tiny_demo", "tiny_semantic", "tiny_spatial")
METRICS = ("box_accuracy", "point_accuracy", "count_accuracy")
T_95 = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}
"""Student's t for a two-sided 95 % interval, by number of seeds."""


def run(recipe: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train and score one recipe with one seed, or read the stored result."""
    folder = Path(arguments.runs) / f"{recipe}-{seed}"
    stored = folder.with_suffix(".json")
    if stored.exists():
        return json.loads(stored.read_text(encoding="utf-8"))
    started, cpu = time.monotonic(), time.process_time()
    train(fusionkit.load_recipe(f"builtin:{recipe}", set=[f"train.seed={seed}"]), folder, overwrite=True)
    seconds, cpu_seconds = time.monotonic() - started, time.process_time() - cpu
    model, processor = load_checkpoint(folder)
    settings = fusionkit.load_recipe(f"builtin:{RECIPES[0]}")
    unseen = settings.model_copy(update={"evaluate": settings.evaluate[:1]})
    result: dict[str, Any] = {
        "recipe": recipe,
        "seed": seed,
        "seconds": round(seconds),
        "cpu_seconds": round(cpu_seconds),
    }
    result["parameters"] = model.plan.parameters
    result["scores"] = scores(evaluate(model, processor, unseen, samples=arguments.pictures))
    if recipe == RECIPES[0]:
        wrong = evaluate(model, processor, unseen, samples=arguments.pictures, shuffle_pictures=True)
        result["wrong_picture"] = scores(wrong)
    stored.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def scores(results: Any) -> dict[str, float]:
    return {metric: results[0].values[metric][metric] for metric in METRICS}


def interval(values: list[float]) -> dict[str, float]:
    """Mean over seeds and half the width of its 95 % interval."""
    half = T_95[len(values)] * statistics.stdev(values) / len(values) ** 0.5
    return {"mean": round(statistics.mean(values), 4), "half_width": round(half, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, choices=sorted(T_95))
    parser.add_argument("--pictures", type=int, default=512)
    parser.add_argument("--runs", default="runs/fused_vs_single")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    Path(arguments.runs).mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    runs = [run(recipe, seed, arguments) for seed in range(arguments.seeds) for recipe in RECIPES]
    by = {(result["recipe"], result["seed"]): result for result in runs}
    seeds = range(arguments.seeds)
    summary: dict[str, Any] = {}
    for recipe in RECIPES:
        summary[recipe] = {
            metric: interval([by[recipe, seed]["scores"][metric] for seed in seeds]) for metric in METRICS
        }
        if recipe != RECIPES[0]:
            summary[f"{RECIPES[0]} minus {recipe}"] = {
                metric: interval(
                    [by[RECIPES[0], seed]["scores"][metric] - by[recipe, seed]["scores"][metric] for seed in seeds]
                )
                for metric in METRICS
            }
    summary[f"{RECIPES[0]}, wrong picture"] = {
        metric: interval([by[RECIPES[0], seed]["wrong_picture"][metric] for seed in seeds]) for metric in METRICS
    }
    facts = {
        "command": f"python {' '.join(sys.argv)}",
        "date": time.strftime("%Y-%m-%d"),
        "device": f"{platform.machine()} CPU, 1 thread",
        "torch": torch.__version__,
        "interval": "95 %, Student's t over seeds",
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({**facts, "summary": summary, "runs": runs}, indent=2) + "\n", encoding="utf-8")
    for name, values in summary.items():
        cells = "  ".join(f"{metric} {v['mean']:.3f} ± {v['half_width']:.3f}" for metric, v in values.items())
        print(f"{name:26s} {cells}")


if __name__ == "__main__":
    main()
