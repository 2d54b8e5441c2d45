"""Encoders: configs, facts and specs. Torch-free."""

from functools import partial
from math import prod
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, model_validator

from fusionkit import architectures
from fusionkit.blocks.encoders.counts import Architecture, Costs, Level, check_deepest, transformer_block_costs
from fusionkit.errors import ShapeError
from fusionkit.geometry import Grid
from fusionkit.plugin import BlockConfig, BlockSpec, EncoderInfo

Statistics = tuple[float, float, float]
ImageSize = PositiveInt | tuple[PositiveInt, PositiveInt]
ONE_PER_CHANNEL = (0.5, 0.5, 0.5)
"""Maps pixels in 0..1 to -1..1."""


def height_width(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size given as one side or both."""
    return (size, size) if isinstance(size, int) else size


def _positive(statistics: Statistics) -> Statistics:
    if min(statistics) <= 0:
        raise ValueError(f"must be positive in every channel, got {list(statistics)}")
    return statistics


PositiveStatistics = Annotated[Statistics, AfterValidator(_positive)]


class NamedConfig(BlockConfig):
    """What encoders share that come from a library with an input size and statistics of their own."""

    image_size: ImageSize | None = Field(
        None, description="Input side in pixels, or [height, width]; the model's own if not given."
    )
    mean: Statistics | None = Field(
        None,
        description="Per-channel mean of the input, for pixels in 0..1; the model's own if not given, as is nearly always right.",
    )
    std: PositiveStatistics | None = Field(
        None, description="Per-channel standard deviation of the input; the model's own if not given."
    )

    @model_validator(mode="after")
    def _both_statistics(self) -> Self:
        if (self.mean is None) != (self.std is None):
            raise ValueError("give both of `mean` and `std`, or neither")
        return self


class _SmallConfig(BlockConfig):
    """What the two encoders that are trained from scratch share."""

    image_size: ImageSize = Field(48, description="Input side in pixels, or [height, width].")
    depth: PositiveInt = Field(2, description="Transformer blocks; layers are 0..depth.")
    heads: PositiveInt = Field(4, description="Attention heads per block; must divide the width.")
    mlp_ratio: PositiveFloat = Field(2.0, description="Inner width of the MLP over the width.")
    mean: Statistics = Field(ONE_PER_CHANNEL, description="Per-channel mean of the input, for pixels in 0..1.")
    std: PositiveStatistics = Field(ONE_PER_CHANNEL, description="Per-channel standard deviation of the input.")


class SmallVitConfig(_SmallConfig):
    """A plain ViT: patch embedding, learned positions, pre-norm blocks."""

    type: Literal["small_vit"] = "small_vit"
    patch: PositiveInt = Field(6, description="Side of a square patch in pixels.")
    width: PositiveInt = Field(64, description="Width of a token.")


class SmallConvConfig(_SmallConfig):
    """3x3 convolutions down to one grid, then transformer blocks on it."""

    type: Literal["small_conv"] = "small_conv"
    widths: tuple[PositiveInt, ...] = Field(
        (16, 32, 64), min_length=1, description="Channels after each convolution; the last is the width of a token."
    )
    strides: tuple[Annotated[int, Field(ge=1, le=2)], ...] = Field(
        (2, 2, 2), min_length=1, description="Stride of each convolution, 1 or 2; their product is the patch."
    )


class TimmConfig(NamedConfig):
    """Any timm model whose blocks lie on one grid per stride."""

    type: Literal["timm"] = "timm"
    model: str = Field(
        min_length=1,
        pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?$",
        description="timm name with its weight tag, for example vit_small_patch14_dinov2.lvd142m.",
    )
    stride: PositiveInt | None = Field(
        None, description="Which stride to read layers at, for models with several (ConvNeXt: 4, 8, 16 or 32)."
    )
    weights: str = Field(
        "pretrained",
        min_length=1,
        description="`pretrained`, `random`, or the path of a .safetensors file or its folder.",
    )
    revision: str | None = Field(None, min_length=1, description="Branch, tag or commit of the pretrained weights.")
    info: Architecture | None = Field(
        None, description="Facts of a model that the built-in table does not list; checked when the model is built."
    )

    @model_validator(mode="after")
    def _revision_of_something(self) -> Self:
        # `random` stands for `pretrained` while only shapes are built.
        if self.revision is not None and self.weights not in ("pretrained", "random"):
            raise ValueError("revision: only pretrained weights have revisions")
        return self


# ------------------------------------------------------------------------------------------------------- facts
def _count_params(costs: Costs, depth: int, grid: Grid, deepest: int) -> int:
    check_deepest(deepest, depth)
    return costs.params(deepest, grid)


def _count_flops(costs: Costs, depth: int, prefix_tokens: int, deepest: int, grid: Grid) -> int:
    check_deepest(deepest, depth)
    return costs.flops(deepest, grid, prefix_tokens)


def _grid(size: tuple[int, int], stride: tuple[int, int]) -> Grid:
    """The grid of an input size; raises ShapeError when a remainder would be cut off."""
    (height, width), (down, right) = size, stride
    if height % down or width % right:
        patch = str(down) if down == right else f"{down}x{right}"
        raise ShapeError(
            f"image {height}x{width} is not a multiple of the patch of {patch} px",
            field="image_size",
            hint=f"use {max(height // down, 1) * down}x{max(width // right, 1) * right}",
        )
    return Grid(height // down, width // right)


def _small_info(
    config: SmallVitConfig | SmallConvConfig, width: int, stride: int, stem: tuple[int, int]
) -> EncoderInfo:
    if width % config.heads:
        raise ShapeError(f"{config.heads} heads do not divide the width {width}", field="heads")
    block, per_token, per_pair = transformer_block_costs(width, mlp_width(width, config.mlp_ratio))
    costs = Costs(
        stem_params=stem[0],
        position_params=width,
        block_params=block,
        stem_flops=stem[1],
        block_flops=per_token,
        attention_flops=per_pair,
    )
    size = height_width(config.image_size)
    grid = _grid(size, (stride, stride))
    return EncoderInfo(
        depth=config.depth,
        width=width,
        stride=(stride, stride),
        input_size=size,
        prefix_tokens=0,
        mean=config.mean,
        std=config.std,
        licence="none: trained from scratch",
        count_params=partial(_count_params, costs, config.depth, grid),
        count_flops=partial(_count_flops, costs, config.depth, 0),
        name=config.type,
    )


def mlp_width(width: int, ratio: float) -> int:
    """Inner width of a block's MLP."""
    return max(1, round(width * ratio))


def describe_small_vit(config: SmallVitConfig) -> EncoderInfo:
    weights = 3 * config.patch**2 * config.width
    return _small_info(config, config.width, config.patch, (weights + config.width, 2 * weights))


def describe_small_conv(config: SmallConvConfig) -> EncoderInfo:
    if len(config.strides) != len(config.widths):
        raise ShapeError(
            f"{len(config.strides)} strides for {len(config.widths)} widths",
            field="strides",
            hint="one per convolution",
        )
    stride = prod(config.strides)
    params = flops = 0
    cells, channels = stride * stride, 3
    for width, step in zip(config.widths, config.strides, strict=True):
        weights = 9 * channels * width
        # One convolution with bias and one group norm with scale and shift.
        params += weights + 3 * width
        cells //= step * step
        flops += 2 * weights * cells
        channels = width
    return _small_info(config, channels, stride, (params, flops))


def describe_timm(config: TimmConfig) -> EncoderInfo:
    """Facts of a timm model, from `info:` or the built-in table; raises ShapeError naming the ways on if unlisted."""
    architecture = timm_architecture(config)
    return named_info(architecture, timm_level(config, architecture), config, timm_name(config))


def named_info(architecture: Architecture, level: Level, config: NamedConfig, name: str) -> EncoderInfo:
    """The facts of a library's encoder at the input size and statistics that its config chooses."""
    size = height_width(config.image_size) if config.image_size is not None else architecture.input_size
    return EncoderInfo(
        depth=level.depth,
        width=level.width,
        stride=level.stride,
        input_size=size,
        prefix_tokens=architecture.prefix_tokens,
        mean=config.mean or architecture.mean,
        std=config.std or architecture.std,
        licence=architecture.licence,
        count_params=partial(_count_params, level, level.depth, _grid(size, level.stride)),
        count_flops=partial(_count_flops, level, level.depth, architecture.prefix_tokens),
        name=name,
    )


def timm_name(config: TimmConfig) -> str:
    """The name timm is asked for: an untagged name gets the one listed tag."""
    return architectures.resolve("timm", config.model) or config.model


def timm_architecture(config: TimmConfig) -> Architecture:
    if config.info is not None:
        return config.info
    facts: Any = architectures.facts("timm", config.model)
    if facts is None:
        near = architectures.near("timm", config.model)
        raise ShapeError(
            f"timm model '{config.model}' is not in the built-in table"
            + (f"; listed and similar: {', '.join(near)}" if near else ""),
            field="model",
            hint=f"give its facts under `info:` (`python -m fusionkit.testing.architectures {config.model}` prints them) "
            "or run `fusionkit plan --meta`",
        )
    return Architecture.model_validate(facts, strict=False)


def timm_level(config: TimmConfig, architecture: Architecture) -> Level:
    by_stride = {level.stride[0]: level for level in architecture.levels}
    choices = ", ".join(map(str, by_stride))
    if config.stride is None and len(by_stride) > 1:
        raise ShapeError(
            f"{config.model} has layers at strides {choices}",
            field="stride",
            hint="say which, for example `stride: 16`",
        )
    stride = config.stride if config.stride is not None else next(iter(by_stride))
    if stride not in by_stride:
        raise ShapeError(f"{config.model} has no layers at stride {stride}", field="stride", hint=f"use {choices}")
    return by_stride[stride]


# ------------------------------------------------------------------------------------------------------- specs
SMALL_VIT = BlockSpec(
    api=1,
    family="encoders",
    config=SmallVitConfig,
    describe=describe_small_vit,
    factory="fusionkit.blocks.encoders.small_vit:SmallVit",
    summary="Plain ViT to train from scratch: patches, learned positions, pre-norm blocks.",
    examples=(
        MappingProxyType({}),
        MappingProxyType({"image_size": (24, 36), "patch": 12, "width": 24, "depth": 3, "heads": 3}),
    ),
)

SMALL_CONV = BlockSpec(
    api=1,
    family="encoders",
    config=SmallConvConfig,
    describe=describe_small_conv,
    factory="fusionkit.blocks.encoders.small_conv:SmallConv",
    summary="Strided 3x3 convolutions down to one grid, then transformer blocks; to train from scratch.",
    examples=(
        MappingProxyType({}),
        MappingProxyType(
            {"image_size": (24, 36), "widths": (8, 12), "strides": (2, 2), "depth": 1, "heads": 2, "mlp_ratio": 1.5}
        ),
    ),
)

TIMM = BlockSpec(
    api=1,
    family="encoders",
    config=TimmConfig,
    describe=describe_timm,
    factory="fusionkit.blocks.encoders.timm_encoder:TimmEncoder",
    summary="Any timm model at one stride: SigLIP 2, DINOv3, DINOv2, CLIP, ConvNeXt, ...",
    examples=(
        MappingProxyType({"model": "test_vit.r160_in1k", "image_size": 64, "weights": "random"}),
        MappingProxyType({"model": "test_convnext.r160_in1k", "image_size": 64, "stride": 16, "weights": "random"}),
    ),
)
