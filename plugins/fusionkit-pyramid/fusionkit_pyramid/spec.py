"""What fusionkit knows of `pyramid.convnext` before building it. Torch-free."""

from __future__ import annotations

from functools import partial
from types import MappingProxyType
from typing import Literal

from pydantic import Field, PositiveInt

from fusionkit.plugin import BlockConfig, BlockSpec, EncoderInfo, ShapeError
from fusionkit_pyramid.shape import COARSEST, shape_of

Statistics = tuple[float, float, float]
PRETRAINED, RANDOM = "pretrained", "random"
TRAINED_HERE = "none: trained from scratch"


class ConvnextConfig(BlockConfig):
    """A ConvNeXt read at any of its blocks, whatever their stride."""

    type: Literal["pyramid.convnext"] = "pyramid.convnext"
    model: str = Field(
        pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?$",
        description="timm's name with its weight tag, for example convnext_tiny.in12k_ft_in1k.",
    )
    weights: str = Field(
        PRETRAINED, min_length=1, description="`pretrained`, `random`, or the path of a .safetensors file."
    )
    image_size: PositiveInt | tuple[PositiveInt, PositiveInt] = Field(
        224, description="Input side in pixels, or [height, width]; multiples of 32."
    )
    stride: Literal[4, 8, 16, 32] = Field(
        16, description="Stride of the grid that all layers are brought to: finer ones averaged, coarser ones repeated."
    )
    mean: Statistics = Field(
        (0.485, 0.456, 0.406), description="Per-channel mean of the input; compared with the pretrained model's."
    )
    std: Statistics = Field(
        (0.229, 0.224, 0.225), description="Per-channel standard deviation; compared with the pretrained model's."
    )


def describe(config: ConvnextConfig) -> EncoderInfo:
    """Facts of a ConvNeXt at an input size; raises ShapeError where its coarsest stage would not tile the input."""
    shape = shape_of(config.model)
    size = (config.image_size, config.image_size) if isinstance(config.image_size, int) else config.image_size
    if any(side % COARSEST for side in size):
        height, width = (max(side // COARSEST, 1) * COARSEST for side in size)
        raise ShapeError(
            f"image {size[0]}x{size[1]} is not a multiple of {COARSEST}, the stride of the last stage",
            field="image_size",
            hint=f"use {height}x{width}",
        )
    return EncoderInfo(
        depth=shape.depth,
        width=shape.widths[-1],
        stride=(config.stride, config.stride),
        input_size=size,
        prefix_tokens=0,
        mean=config.mean,
        std=config.std,
        licence=TRAINED_HERE if config.weights == RANDOM else "weights: as timm states for the tag",
        count_params=shape.params,
        count_flops=partial(shape.count_flops, config.stride),
        name=config.model,
        layer_strides=shape.layer_strides,
    )


CONVNEXT = BlockSpec(
    api=1,
    family="encoders",
    config=ConvnextConfig,
    describe=describe,
    factory="fusionkit_pyramid.convnext:Convnext",
    paper="Liu et al. 2022, A ConvNet for the 2020s (arXiv 2201.03545)",
    summary="Blocks of all four stages of a ConvNeXt, strides 4 to 32, brought to one grid without parameters.",
    examples=(
        MappingProxyType({"model": "test_convnext", "weights": "random", "image_size": (64, 96)}),
        MappingProxyType({"model": "test_convnext", "weights": "random", "image_size": 64, "stride": 8}),
    ),
)
