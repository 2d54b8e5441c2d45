"""Selectors that name single layers: a list, and a seeded random draw."""

from __future__ import annotations

import random

from fusionkit.blocks.selectors.consecutive import refuse_count_over
from fusionkit.blocks.selectors.specs import ListConfig, RandomConfig
from fusionkit.plugin import BlockSite, EncoderInfo, ShapeError


class ListedLayers:
    """Exactly the layers named."""

    def __init__(self, config: ListConfig, site: BlockSite) -> None:
        self.config = config

    def layers(self, info: EncoderInfo) -> tuple[int, ...]:
        if outside := [layer for layer in self.config.layers if layer > info.depth]:
            raise ShapeError(
                f"layers {outside} are outside the encoder, which has layers 0 to {info.depth}",
                field="layers",
                hint=f"use at most {info.depth}",
            )
        return self.config.layers


class RandomLayers:
    """`count` layers of 1..depth, every set equally likely, fixed by the seed."""

    def __init__(self, config: RandomConfig, site: BlockSite) -> None:
        self.config = config

    def layers(self, info: EncoderInfo) -> tuple[int, ...]:
        refuse_count_over(info.depth, self.config.count)
        # Python promises the same `random()` for a seed in every version, but not the same `sample()`.
        draw = random.Random(self.config.seed)
        left = list(range(1, info.depth + 1))
        return tuple(sorted(left.pop(int(draw.random() * len(left))) for _ in range(self.config.count)))
