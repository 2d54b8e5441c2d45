"""Selectors that follow the encoder's depth: evenly spaced, and by shares of the depth."""

from __future__ import annotations

from math import floor

from fusionkit.blocks.selectors.consecutive import refuse_count_over
from fusionkit.blocks.selectors.specs import EvenlySpacedConfig, RelativeConfig
from fusionkit.plugin import BlockSite, EncoderInfo, ShapeError


class EvenlySpacedLayers:
    """layer_i = floor(i depth / count) for i = 1..count, so the deepest layer is always among them."""

    def __init__(self, config: EvenlySpacedConfig, site: BlockSite) -> None:
        self.config = config

    def layers(self, info: EncoderInfo) -> tuple[int, ...]:
        count = self.config.count
        refuse_count_over(info.depth, count)
        return tuple(step * info.depth // count for step in range(1, count + 1))


class RelativeLayers:
    """layer = floor(fraction depth + 1/2): fraction 0 is the input of block 1, fraction 1 the deepest layer."""

    def __init__(self, config: RelativeConfig, site: BlockSite) -> None:
        self.config = config

    def layers(self, info: EncoderInfo) -> tuple[int, ...]:
        config = self.config
        if config.first is not None and config.last is not None:
            return tuple(range(_nearest(config.first, info.depth), _nearest(config.last, info.depth) + 1))
        fractions = config.fractions or ()
        layers = tuple(_nearest(fraction, info.depth) for fraction in fractions)
        if len(set(layers)) != len(layers):
            raise ShapeError(
                f"fractions {list(fractions)} of depth {info.depth} give layers {list(layers)}, some more than once",
                field="fractions",
                hint=f"keep fractions at least {1 / info.depth:.3g} apart",
            )
        return layers


def _nearest(fraction: float, depth: int) -> int:
    return floor(fraction * depth + 0.5)
