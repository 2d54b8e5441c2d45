"""What `fusionkit plan --world N` shows: the memory of each process, stage by stage, and what fits."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fusionkit.cli.output import emit, table
from fusionkit.recipe.plan_memory import RankMemory, WorldPlan
from fusionkit.recipe.plan_table import in_bytes

PARTS = ("parameters", "gradients", "optimizer", "activations", "gathered")
NAMES = {"ddp": "DDP", "fsdp2": "FSDP2"}


def world_dict(found: WorldPlan, memory: int | None) -> dict[str, Any]:
    """The plan as JSON-able values."""
    rows = [
        asdict(row) | {"total": row.total} | ({} if memory is None else {"fits": row.total <= memory})
        for row in found.rows
    ]
    return {"processes": found.world, "memory": memory, "ranks": rows, "problems": list(found.problems)}


def show_world(found: WorldPlan, memory: int | None) -> None:
    """Print the plan as text."""
    emit()
    columns = ("per process", "layout", *PARTS, "total", *(("fits",) if memory is not None else ()))
    table(columns, [_row(found, row, memory) for row in found.rows], right=frozenset((*PARTS, "total")))
    emit("largest pictures, longest text; activations are estimated, libraries and temporary buffers are not counted")
    for problem in found.problems:
        emit(f"note: {problem}")
    if memory is not None:
        emit(_verdict(found, memory))


def _row(found: WorldPlan, row: RankMemory, memory: int | None) -> tuple[str, ...]:
    layout = "one process" if found.world == 1 else NAMES[row.layout]
    sizes = (in_bytes(getattr(row, part)) for part in PARTS)
    verdict = () if memory is None else ("yes" if row.total <= memory else "no",)
    return (row.stage, layout, *sizes, in_bytes(row.total), *verdict)


def _verdict(found: WorldPlan, memory: int) -> str:
    """Which layout fits all stages, and what to try when none does."""
    layouts = list(dict.fromkeys(row.layout for row in found.rows))
    fitting = [layout for layout in layouts if all(row.total <= memory for row in found.rows if row.layout == layout)]
    if fitting:
        return f"{in_bytes(memory)}: fits with {' and '.join(NAMES[layout] for layout in fitting)}"
    largest = max(found.rows, key=lambda row: row.activations)
    advice = "train.micro_batch_size=1, --gradient-checkpointing, fewer crops or a shorter sequence_length"
    if largest.activations < largest.total / 2:
        advice = "more processes with FSDP2, or fewer trainable parts"
    return f"{in_bytes(memory)}: nothing fits; try {advice}"
