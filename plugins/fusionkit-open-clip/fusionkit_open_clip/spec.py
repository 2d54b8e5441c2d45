"""What fusionkit knows of `openclip.vit` before building it. Torch-free."""

from __future__ import annotations

from functools import partial
from types import MappingProxyType
from typing import Literal

from pydantic import Field, PositiveInt

from fusionkit.plugin import BlockConfig, BlockSpec, EncoderInfo, Grid
from fusionkit_open_clip.architecture import PREFIX_TOKENS, Tower, tower

Statistics = tuple[float, float, float]
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
RANDOM = "random"
TRAINED_HERE = "none: trained from scratch"


class VitConfig(BlockConfig):
    """The ViT of an OpenCLIP model, without the norm, pooling and projection that follow its last block."""

    type: Literal["openclip.vit"] = "openclip.vit"
    model: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="OpenCLIP's name, for example ViT-B-16 or ViT-L-14."
    )
    weights: str = Field(
        min_length=1,
        description="A tag of OpenCLIP (laion2b_s34b_b88k, openai, ...), the path of a checkpoint file, or `random`.",
    )
    image_size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = Field(
        None,
        description="Input side in pixels, or [height, width]; the model's own if not given. Positions are resized.",
    )
    mean: Statistics = Field(CLIP_MEAN, description="Per-channel mean of the input; compared with the tag's.")
    std: Statistics = Field(
        CLIP_STD, description="Per-channel standard deviation of the input; compared with the tag's."
    )


def describe(config: VitConfig) -> EncoderInfo:
    """Facts of a tower at an input size; raises ShapeError where the model or the size cannot be."""
    shape = tower(config.model)
    height, width = size = input_size(config, shape)
    grid = Grid(max(height // shape.patch[0], 1), max(width // shape.patch[1], 1))
    return EncoderInfo(
        depth=shape.depth,
        width=shape.width,
        stride=shape.patch,
        input_size=size,
        prefix_tokens=PREFIX_TOKENS,
        mean=config.mean,
        std=config.std,
        licence=TRAINED_HERE if config.weights == RANDOM else "MIT (OpenCLIP); weights: as their publisher says",
        count_params=partial(shape.params, grid),
        count_flops=shape.flops,
        name=f"openclip.vit {config.model}",
    )


def input_size(config: VitConfig, shape: Tower) -> tuple[int, int]:
    if config.image_size is None:
        return shape.image_size
    return (config.image_size, config.image_size) if isinstance(config.image_size, int) else config.image_size


VIT = BlockSpec(
    api=1,
    family="encoders",
    config=VitConfig,
    describe=describe,
    factory="fusionkit_open_clip.vit:Vit",
    paper="Cherti et al. 2022, Reproducible scaling laws for contrastive language-image learning (arXiv 2212.07143)",
    summary="The vision tower of an OpenCLIP model: LAION, OpenAI, DataComp, DFN, CLIPA, ...",
    examples=(
        MappingProxyType({"model": "ViT-S-32", "image_size": (64, 96), "weights": "random"}),
        MappingProxyType({"model": "ViT-M-16-alt", "image_size": 48, "weights": "random"}),
    ),
)
