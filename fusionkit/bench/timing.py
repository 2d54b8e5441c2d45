"""Time in rounds: every round visits all variants once, in a new order, and keeps each one's median."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch


class Timed(Protocol):
    """What can be timed: `prepare` before each call, `call` for the time."""

    def prepare(self) -> None: ...

    def call(self) -> object: ...


MIN_SECONDS = 0.03
"""How long a variant is called in each round, at least."""
MIN_CALLS, MAX_CALLS = 3, 100
LONG_SECONDS = 0.5
"""A call of this length is not repeated within a round."""
CACHE_BYTES = 256 * 2**20
"""Overwritten before each call on a GPU, so that no input waits in its cache."""


@dataclass(frozen=True, slots=True)
class Quartiles:
    """25 %, 50 % and 75 % of some numbers."""

    p25: float
    p50: float
    p75: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quartiles:
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))

    def to_dict(self) -> dict[str, float]:
        return {name: round(getattr(self, name), 6) for name in ("p25", "p50", "p75")}


Timer = Callable[[Timed], float]


def timer(device: torch.device) -> Timer:
    """What times one call in seconds: CUDA events with the cache flushed, or the clock."""
    if device.type == "cuda":
        flush = torch.empty(CACHE_BYTES, dtype=torch.int8, device=device)

        def timed(work: Timed) -> float:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            work.prepare()
            flush.zero_()
            start.record()
            work.call()
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end)) / 1e3

        return timed

    def clocked(work: Timed) -> float:
        work.prepare()
        before = time.perf_counter()
        work.call()
        return time.perf_counter() - before

    return clocked


def run_rounds(
    works: Mapping[str, Timed],
    rounds: int,
    time_once: Timer,
    on_round: Callable[[int], None] = lambda done: None,
    seed: int = 0,
    seconds: float | None = None,
) -> dict[str, list[float] | Exception]:
    """Seconds of every variant, one number a round; or the error that ended it.

    A variant that fails in one round takes no part in later ones. After `seconds` no other round begins.
    """
    order = random.Random(seed)
    times: dict[str, list[float]] = {name: [] for name in works}
    began = time.monotonic()
    failed: dict[str, Exception] = {}
    for number in range(rounds):
        if number and seconds is not None and time.monotonic() - began > seconds:
            break
        names = [name for name in works if name not in failed]
        order.shuffle(names)
        for name in names:
            try:
                times[name].append(_visit(works[name], time_once))
            except Exception as error:  # whatever a variant raises becomes its row; the others go on
                failed[name] = error
        on_round(number + 1)
    return {name: failed.get(name, values) for name, values in times.items()}


def _visit(work: Timed, time_once: Timer) -> float:
    """The median of several calls after one for nothing, or the time of one that is long."""
    first = time_once(work)
    if first >= LONG_SECONDS:
        return first
    # The first may have been interrupted: the second says, too, how many fit.
    second = time_once(work)
    calls = min(MAX_CALLS, int(MIN_SECONDS / max(min(first, second), 1e-7)) + 1)
    return statistics.median([second, *(time_once(work) for _ in range(max(MIN_CALLS, calls) - 1))])


def paired_ratios(values: Sequence[float], reference: Sequence[float]) -> list[float]:
    """Time over the reference's time in the same round."""
    return [value / base for value, base in zip(values, reference, strict=True)]
