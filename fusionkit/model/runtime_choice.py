"""How to execute a recipe on a device, chosen from what has been measured, with a reason for every choice."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import torch

from fusionkit.errors import UsageError
from fusionkit.model.runtime import Runtime
from fusionkit.ops.attention import why_unavailable
from fusionkit.ops.layer_norm_sum import why_unavailable as why_kernel_unavailable
from fusionkit.recipe import Recipe
from fusionkit.recipe.plan import Plan, plan

SHARE = 0.5
"""Of the free memory, what the states of the encoders may take; the rest is for what follows them."""
STATES = 16
"""Hidden states' worth of memory that a block of an encoder is taken to need at a time: its MLP, attention and copies."""


_NO_CUDA = "needs a CUDA device"


class Choice(NamedTuple):
    """A runtime, and why each of its fields is as it is."""

    runtime: Runtime
    reasons: tuple[str, ...]


def choose_runtime(recipe: Recipe, device: str) -> Choice:
    """Raises UsageError for a device that is not here, RecipeError for a recipe that does not plan."""
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda"):
        raise UsageError(f"Runtime.auto: device '{device}' is unknown here; expected cpu or cuda")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"Runtime.auto: torch finds no CUDA device for '{device}'; use cpu")
    if kind == "cuda" and index not in ("", *map(str, range(torch.cuda.device_count()))):
        last = torch.cuda.device_count() - 1
        raise UsageError(f"Runtime.auto: expected cuda, or one from cuda:0 to cuda:{last}, got '{device}'")
    planned = plan(recipe)
    chunk, why = _crop_chunk(planned, _free_bytes(device))
    refused = "; ".join(f"{name}: {reason}" for name in ("xformers",) if (reason := why_unavailable(name)))
    return Choice(
        Runtime(crop_chunk=chunk),
        (
            f"crop_chunk={chunk}: {why}",
            "stream_layers=True: same numbers, and mixing 27 layers held 10 times less memory than a list of them "
            "(benchmarks/results/cpu/mixing_memory.json)",
            "mix_chunk=1: 4 was within the noise on a CPU; not measured on a GPU",
            "attention=sdpa: eager was slower on a CPU; not measured on a GPU" + (f" ({refused})" if refused else ""),
            "layer_norm_sum=eager: triton is one read of every layer where eager is several, but not measured on a GPU"
            + (f" ({kernel})" if (kernel := why_kernel_unavailable("triton")) else ""),
            "cuda_graphs=False: off, not measured" + (f" ({_NO_CUDA})" if kind == "cpu" else ""),
            "parallel_encoders=False: off, not measured" + (f" ({_NO_CUDA})" if kind == "cpu" else ""),
            "torch.compile: off, not measured to help",
        ),
    )


def _crop_chunk(planned: Plan, free: int | None) -> tuple[int | None, str]:
    """All crops at once where they fit."""
    crops = planned.largest_layout.crops if planned.layouts is not None else 1
    if crops == 1:
        return None, "a picture is one crop"
    if free is None:
        return None, "the machine does not say how much memory is free"
    state = max(4 * stream.stack.grid.tokens * stream.info.width for stream in planned.streams.values())
    need, have = crops * STATES * state, int(SHARE * free)
    shown = f"{crops} crops need about {need / 2**20:.0f} MiB, {free / 2**20:.0f} MiB are free"
    if need <= have:
        return None, shown
    return max(1, have // (STATES * state)), shown


def _free_bytes(device: str) -> int | None:
    if device.startswith("cuda"):
        asked = torch.device(device)
        # What torch holds back for later allocations is not free to others, but it is to us.
        held_back = torch.cuda.memory_reserved(asked) - torch.cuda.memory_allocated(asked)
        return int(torch.cuda.mem_get_info(asked)[0]) + held_back
    path = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s*(\d+) kB", path.read_text(encoding="utf-8")) if path.exists() else None
    return 1024 * int(found[1]) if found else None
