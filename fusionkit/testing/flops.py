"""Counting the FLOPs that a call spends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.utils.flop_counter import FlopCounterMode


def count_flops(call: Callable[[], object]) -> int:
    """Matrix products and convolutions of one call without gradients, 2 per multiply-add."""
    with torch.no_grad(), _without_fused_attention(), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


@contextmanager
def _without_fused_attention() -> Iterator[None]:
    """`nn.MultiheadAttention` without gradients takes an operator of its own, of which the counter sees only parts."""
    was = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was)
