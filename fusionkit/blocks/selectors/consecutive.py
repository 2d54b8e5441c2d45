"""Selectors of consecutive layers: all, the last few, a range."""

from __future__ import annotations

from fusionkit.blocks.selectors.specs import AllConfig, LastConfig, RangeConfig
from fusionkit.plugin import BlockSite, EncoderInfo, ShapeError


class AllLayers:
    """Layers 1..depth."""

    def __init__(self, config: AllConfig, site: BlockSite) -> None:
        self.config = config

    def layers(self, info: EncoderInfo) -> tuple[int, ...]:
        return tuple(range(1, info.depth + 1))


class LastLayers:
    """Layers depth-count+1..depth."""

    def __init__(self, config: LastConfig, site: BlockSite) -> None:
        self.config = config

    def layers(self, info: EncoderInfo) -> tuple[int, ...]:
        refuse_count_over(info.depth, self.config.count)
        return tuple(range(info.depth - self.config.count + 1, info.depth + 1))


class LayerRange:
    """Layers first..last, both included."""

    def __init__(self, config: RangeConfig, site: BlockSite) -> None:
        self.config = config

    def layers(self, info: EncoderInfo) -> tuple[int, ...]:
        if self.config.last > info.depth:
            raise ShapeError(
                f"layer {self.config.last} is outside the encoder, which has layers 0 to {info.depth}",
                field="last",
                hint=f"use at most {info.depth}",
            )
        return tuple(range(self.config.first, self.config.last + 1))


def refuse_count_over(depth: int, count: int) -> None:
    """Raise ShapeError when more layers are asked for than 1..depth holds."""
    if count > depth:
        raise ShapeError(
            f"cannot select {count} layers of an encoder with {depth}", field="count", hint=f"use at most {depth}"
        )
