"""What a peer is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from fusionkit.errors import FusionkitError
from fusionkit.plugin import BlockConfig

TRAINING = frozenset({"fwd", "fwdbwd", "step"})
INFERENCE = frozenset({"fwd"})


def always(config: BlockConfig) -> bool:
    """Whatever the config, the peer computes the block's function."""
    return True


def never(config: BlockConfig) -> bool:
    """Whatever the config, the peer computes something else."""
    return False


class UnsuitableError(FusionkitError):
    """A peer cannot compute what this block computes; the reason becomes a skipped row."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Another way to compute a block.

    `make(block, config)` returns a module that is called like the block; it raises UnsuitableError for configs it does
    not cover. Where `same(config)`, it computes the block's function with the block's weights and is checked; elsewhere
    it only stands in the block's place, and is timed unchecked. Half precision runs it under autocast.
    """

    name: str
    block: str
    summary: str
    make: Callable[[nn.Module, BlockConfig], nn.Module]
    modes: frozenset[str] = TRAINING
    same: Callable[[BlockConfig], bool] = always
