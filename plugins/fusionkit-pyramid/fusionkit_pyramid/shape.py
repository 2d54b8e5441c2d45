"""The arithmetic of a ConvNeXt: which layer lies at which stride, and what it costs. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fusionkit.plugin import Grid, ShapeError

STEM_STRIDE = 4
COARSEST = 32
"""Stride of the last stage: what the input must be a multiple of."""
KERNEL = 7


@dataclass(frozen=True, slots=True)
class Pyramid:
    """Blocks and channels of the four stages, at strides 4, 8, 16 and 32.

    Layer 0 is the stem's output, layer l the output of block l, counted through all stages.
    """

    depths: tuple[int, int, int, int]
    widths: tuple[int, int, int, int]

    @property
    def depth(self) -> int:
        return sum(self.depths)

    @property
    def layer_stages(self) -> tuple[int, ...]:
        """The stage, 0 to 3, of every layer."""
        return (0, *(stage for stage, depth in enumerate(self.depths) for _ in range(depth)))

    @property
    def layer_strides(self) -> tuple[tuple[int, int], ...]:
        return tuple((STEM_STRIDE << stage, STEM_STRIDE << stage) for stage in self.layer_stages)

    def kept(self, deepest: int) -> Iterator[tuple[int, int]]:
        """(stage, blocks) for every stage that layer `deepest` needs."""
        for stage, depth in enumerate(self.depths):
            if deepest <= 0:
                return
            yield stage, min(deepest, depth)
            deepest -= depth

    def params(self, deepest: int) -> int:
        total = (3 * STEM_STRIDE**2 + 1 + 2) * self.widths[0]
        for stage, blocks in self.kept(deepest):
            width = self.widths[stage]
            if stage:
                before = self.widths[stage - 1]
                total += 2 * before + (4 * before + 1) * width
            # Depthwise convolution, norm, two matrices with biases, layer scale.
            total += blocks * ((KERNEL**2 + 1) * width + 2 * width + 8 * width**2 + 5 * width + width)
        return total

    def flops(self, cells: int, deepest: int) -> int:
        """For one crop of `cells` cells of 4x4 pixels, 2 per multiply-add."""
        total = 2 * 3 * STEM_STRIDE**2 * self.widths[0] * cells
        for stage, blocks in self.kept(deepest):
            width, here = self.widths[stage], cells >> 2 * stage
            if stage:
                total += 2 * 4 * self.widths[stage - 1] * width * here
            total += blocks * 2 * (KERNEL**2 * width + 8 * width**2) * here
        return total

    def count_flops(self, stride: int, deepest: int, grid: Grid) -> int:
        return self.flops(grid.tokens * (stride // STEM_STRIDE) ** 2, deepest)


SHAPES = {
    "convnext_tiny": Pyramid((3, 3, 9, 3), (96, 192, 384, 768)),
    "convnext_small": Pyramid((3, 3, 27, 3), (96, 192, 384, 768)),
    "convnext_base": Pyramid((3, 3, 27, 3), (128, 256, 512, 1024)),
    "convnext_large": Pyramid((3, 3, 27, 3), (192, 384, 768, 1536)),
    "convnext_xlarge": Pyramid((3, 3, 27, 3), (256, 512, 1024, 2048)),
    "test_convnext": Pyramid((1, 2, 4, 2), (24, 32, 48, 64)),
}
"""By timm's name without the tag of the weights."""


def shape_of(model: str) -> Pyramid:
    """The shape of a timm model; raises ShapeError for others than plain ConvNeXts."""
    architecture = model.partition(".")[0]
    if architecture not in SHAPES:
        raise ShapeError(
            f"'{model}' is no ConvNeXt this plugin knows",
            field="model",
            hint=f"use {', '.join(SHAPES)}, with a tag of timm such as convnext_tiny.in12k_ft_in1k",
        )
    return SHAPES[architecture]
