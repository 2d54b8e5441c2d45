"""The goals beside what is stored: `python benchmarks/goals.py` prints the two tables that stand in README.md.

Every number is read from a file under benchmarks/results; a goal without one is "not measured".
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
NOT_MEASURED = "not measured"
Found = tuple[str, str]
"""What was measured, and the file it stands in."""


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def stored(path: str) -> Path | None:
    found = RESULTS / path
    return found if found.exists() else None


def on_gpu(name: str) -> Path | None:
    """A file of some GPU's folder; the first by name if there are several."""
    return next((path for path in sorted(RESULTS.glob(f"*/{name}.jsonl")) if rows(path)[0]["kind"] == "cuda"), None)


def ratio(path: str, *variants: str) -> Found | None:
    """Time of variants over fusionkit's, in one run."""
    file = stored(path)
    if file is None:
        return None
    by = {row["variant"]: row for row in rows(file)}
    shown = [f"{by[name]['ratio']['p50']:.3g}x ({name})" for name in variants]
    return ", ".join(shown), path


def memory(share: str) -> Found | None:
    file = stored("cpu/mixing_memory.json")
    if file is None:
        return None
    by = {row["way"]: row for row in json.loads(file.read_text())["rows"] if row["share"] == share}
    extra = {way: row["extra_states"] for way, row in by.items()}
    text = (
        f"{extra['list'] / extra['streamed']:.3g}x / {extra['stack'] / extra['streamed']:.3g}x less, "
        f"{extra['streamed']:g} states extra"
    )
    return text, "cpu/mixing_memory.json"


def growth() -> Found | None:
    file = stored("cpu/growth.json")
    if file is None:
        return None
    found = json.loads(file.read_text())["rows"]
    worst = min(found, key=lambda row: row["r2_time"])
    return f"R² ≥ {worst['r2_time']:.4f} in {len(found)} fits", "cpu/growth.json"


def startup() -> Found | None:
    file = stored("cpu/startup.json")
    if file is None:
        return None
    by = {row["command"]: row for row in json.loads(file.read_text())["rows"]}
    names = ("fusionkit list", "fusionkit validate come_vl")
    processor, wall = (" / ".join(f"{by[name][key]['p50']:.0f}" for name in names) for key in ("cpu_ms", "wall_ms"))
    return f"processor {processor} ms (wall {wall} ms, machine busy)", "cpu/startup.json"


def gpu_ratio(name: str, variant: str) -> Found | None:
    file = on_gpu(name)
    row = (
        None if file is None else next((row for row in rows(file) if row["variant"] == variant and row["ratio"]), None)
    )
    return None if file is None or row is None else (f"{row['ratio']['p50']:.3g}x", str(file.relative_to(RESULTS)))


def gpu_share(name: str, rate: str) -> Found | None:
    """Our rate over the ceiling of the same run."""
    file = on_gpu(name)
    if file is None:
        return None
    row = next(row for row in rows(file) if row["variant"] == "fusionkit")
    text = NOT_MEASURED if row["ms"] is None else f"{100 * row[rate] / row['ceil'][rate]:.0f} %"
    return text, str(file.relative_to(RESULTS))


def end_to_end(recipe: str, part: str, reference: str = "molmo_siglip2") -> Found | None:
    """A part's time over the reference's."""
    file = on_gpu("answers")
    if file is None:
        return None
    by = {(row["address"], row["variant"]): row for row in rows(file)}
    ours, base = by.get((recipe, part)), by.get((reference, part))
    if ours is None or base is None or ours["ms"] is None or base["ms"] is None:
        return None
    return f"{ours['ms']['p50'] / base['ms']['p50']:.3f}", str(file.relative_to(RESULTS))


def added_share() -> Found | None:
    """The least time for the products that come_vl adds to molmo_siglip2, over the time it adds."""
    file = on_gpu("answers")
    if file is None:
        return None
    by = {(row["address"], row["variant"]): row for row in rows(file)}
    ours, base = by.get(("come_vl", "vision")), by.get(("molmo_siglip2", "vision"))
    if ours is None or base is None or ours["ms"] is None or base["ms"] is None:
        return None
    least = 1e3 * (ours["flops"] - base["flops"]) / (ours["ceil"]["tflops"] * 1e12)
    return f"{100 * least / (ours['ms']['p50'] - base['ms']['p50']):.0f} %", str(file.relative_to(RESULTS))


GOALS: tuple[tuple[str, str, str, str, Callable[[], Found | None]], ...] = (
    ("inference, a map per layer, L=27 d=1152 N=576", "torch's default (and its weights cached)", "10x", "25x",
     lambda: ratio("cpu/mix_per_layer.jsonl", "torch_orthogonal", "torch_orthogonal_cached")),
    ("inference, one map, L=27 d=1152 N=576", "the released form (and its weights cached)", "50x (10x)", "200x",
     lambda: ratio("cpu/mix_shared.jsonl", "released_form", "released_form_cached")),
    ("orthogonal map, forward and backward, d=1152", "torch's default", "15x", "25x",
     lambda: ratio("cpu/map_fwdbwd.jsonl", "torch_orthogonal")),
    ("training step of the mixer, 4 micro-batches, L=4 d=384 N=196", "torch's default", "10x", "20x",
     lambda: ratio("cpu/mix_step.jsonl", "torch_orthogonal")),
    ("extra memory at its peak, 27 states, 13 crops, a map per layer", "list / stack of states", "10x / 25x", "≤ 2 states extra",
     lambda: memory("layer")),
    ("extra memory at its peak, 27 states, 13 crops, one map", "list / stack of states", "10x / 25x", "≤ 2 states extra",
     lambda: memory("encoder")),
    ("time over layers, crops, tokens", "a straight line", "R² ≥ 0.99", "", growth),
    ("warm `list` / `validate come_vl`", "", "150 / 250 ms", "120 / 200 ms", startup),
    ("released connector, 1 crop, GPU", "its formula", "1.3x", "2.5x", lambda: gpu_ratio("connector_1", "released_connector")),
    ("released connector, 2 crops, GPU", "its formula", "1.3x", "2.5x", lambda: gpu_ratio("connector_2", "released_connector")),
    ("mixing with one map, GPU", "copy bandwidth", "60 %", "80 %", lambda: gpu_share("mix_shared", "gbps")),
    ("mixing with a map per layer, GPU bf16", "matrix-product rate", "60 %", "75 %",
     lambda: gpu_share("mix_per_layer", "tflops")),
    ("`come_vl_released`, first token, 13 crops, GPU", "`molmo_siglip2` (FLOPs: 1.042)", "≤ 1.08", "≤ 1.05",
     lambda: end_to_end("come_vl_released", "first_token")),
    ("`come_vl`, first token, 13 crops, GPU", "`molmo_siglip2` (FLOPs: 1.065)", "≤ 1.10", "≤ 1.08",
     lambda: end_to_end("come_vl", "first_token")),
    ("`come_vl`, first token, 13 crops, GPU", "`molmo`, the paper's pair (1.206)", "", "",
     lambda: end_to_end("come_vl", "first_token", "molmo")),
    ("what the second encoder and the fusion add, GPU", "its least time", "≥ 45 %", "≥ 60 %", added_share),
    ("`come_vl`, 30 tokens, GPU", "`molmo_siglip2` (paper: 1.206)", "≤ 1.05", "≤ 1.025",
     lambda: end_to_end("come_vl", "answer_30")),
    ("`comm_token`, 30 tokens, GPU", "`molmo_siglip2` (paper: 1.75)", "", "", lambda: end_to_end("comm_token", "answer_30")),
)  # fmt: skip


def table() -> str:
    """The goals as Markdown."""
    lines = ["| what | against | must | stretch | measured | stored in |", "|---|---|---|---|---|---|"]
    for what, against, must, stretch, look in GOALS:
        measured, where = look() or (NOT_MEASURED, "")
        link = f"[{where}](results/{where})" if where else ""
        lines.append(f"| {what} | {against} | {must} | {stretch} | {measured} | {link} |")
    return "\n".join(lines)


CONNECTOR, POOL = "connector, 24x24 ask 14x14, d=1152", "attention pooling, 24x24 to 12x12, d=1152"
UNROTATED = "the same with `rope: null`"
OTHERS: tuple[tuple[str, str, str, str, str], ...] = (
    ("mixing, a map per layer, L=27 d=1152 N=576", "geotorch, maps at every use", "come_vl", "streams.semantic.steps.mix", "geotorch"),
    (CONNECTOR, "x-transformers", "connector", "", "x_transformers"),
    (CONNECTOR, "vit-pytorch", "connector", "", "vit_pytorch"),
    (CONNECTOR, "one layer of our `gated_cross_attention`", "connector", "", "gated_cross_attention"),
    (CONNECTOR, "joined on the channel axis, a linear map, same tokens", "connector", "", "concat_linear"),
    (CONNECTOR, "`torch.compile`", "connector", "", "fusionkit[compile]"),
    (CONNECTOR, "xformers", "connector", "", "fusionkit[xformers]"),
    (UNROTATED, "x-transformers", "connector_unrotated", "", "x_transformers"),
    (UNROTATED, "vit-pytorch", "connector_unrotated", "", "vit_pytorch"),
    (UNROTATED, "one layer of our `gated_cross_attention`", "connector_unrotated", "", "gated_cross_attention"),
    (POOL, "x-transformers", "come_vl", "fusion.pool", "x_transformers"),
    (POOL, "torch.nn.MultiheadAttention", "come_vl", "fusion.pool", "torch_multihead_attention"),
    (POOL, "x-transformers, learned queries", "come_vl", "fusion.pool", "x_transformers_resampler"),
    (POOL, "timm, one learned query", "come_vl", "fusion.pool", "timm_attention_pool"),
    (POOL, "vit-pytorch's PatchMerger, no projections", "come_vl", "fusion.pool", "vit_pytorch_resampler"),
    ("mixing, a map per layer, folded, L=12 d=384 N=256", "`torch.compile`", "compile_per_layer", "", "fusionkit[compile]"),
    ("mixing, one map, folded, L=27 d=1152 N=576", "`torch.compile`", "compile_shared", "", "fusionkit[compile]"),
)  # fmt: skip
"""What is measured, beside what, and the file, address (the only one if empty) and variant that say it."""


def others() -> str:
    """Other people's blocks and other ways to run ours, as Markdown; skipped rows with their reason."""
    lines = ["| what | beside | function | time / ours | noise | stored in |", "|---|---|---|---:|---:|---|"]
    for what, beside, name, address, variant in OTHERS:
        path = f"cpu/{name}.jsonl"
        by = {row["variant"]: row for row in rows(RESULTS / path) if not address or row["address"] == address}
        row, again = by[variant], by["fusionkit_again"]
        function = "the same" if row["computes"] == row["block"] else "another"
        found = f"{row['ratio']['p50']:.3g}x" if row["ratio"] else f"{row['status']}: {row['reason']}"
        noise = f"{100 * max(abs(value - 1) for name, value in again['ratio'].items() if name != 'vs'):.0f} %"
        lines.append(f"| {what} | {beside} | {function} | {found} | {noise} | [{path}](results/{path}) |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(), others(), sep="\n\n")
