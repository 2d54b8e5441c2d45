"""Specs of the adapters: tokens to tokens on the same grid. Torch-free.

As last step before the language model an adapter is the projector: its width is then the language model's.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from fusionkit.plugin import (
    BlockPlan,
    BlockSpec,
    LayerStackSpec,
    ShapeError,
    StepConfig,
    TokenSpec,
    Width,
    resolve_width,
)

Inputs = Mapping[str, TokenSpec | LayerStackSpec]
WIDTH = "Output width; by default what the next consumer needs, else the input width."


class LinearConfig(StepConfig):
    """One linear map per token."""

    type: Literal["linear"] = "linear"
    width: Width | None = Field(None, description=WIDTH)
    bias: bool = Field(True, description="Whether to add a bias.")


class MlpConfig(StepConfig):
    """A multilayer perceptron per token: gelu layers with biases, or one swiglu block without."""

    type: Literal["mlp"] = "mlp"
    hidden: PositiveInt | None = Field(None, description="Inner width; the output width if not given.")
    activation: Literal["gelu", "swiglu"] = Field("gelu", description="gelu (exact) or swiglu.")
    depth: PositiveInt = Field(2, description="Linear layers in a row; swiglu always has 2.")
    width: Width | None = Field(None, description=WIDTH)
    norm: bool = Field(False, description="LayerNorm before the first layer.")

    @model_validator(mode="after")
    def _swiglu_has_depth_2(self) -> Self:
        if self.activation == "swiglu" and self.depth != 2:
            raise ValueError(f"depth must be 2 with activation swiglu, got {self.depth}")
        return self


class GatedMlpConfig(StepConfig):
    """LayerNorm, a gelu-gated MLP and a residual."""

    type: Literal["gated_mlp"] = "gated_mlp"
    expansion: PositiveInt = Field(4, description="Inner width as a multiple of the input width.")
    width: Width | None = Field(None, description=WIDTH)
    residual: bool = Field(True, description="Add the input; needs the output width to be the input width.")
    final_norm: bool = Field(False, description="LayerNorm after the last linear map, before the residual.")
    dropout: NonNegativeFloat = Field(0.0, lt=1.0, description="Dropout inside the MLP while training.")


class SincosPositionConfig(StepConfig):
    """A fixed two-dimensional sine and cosine code added to every token."""

    type: Literal["sincos_position"] = "sincos_position"
    scale: PositiveFloat = Field(1.0, description="Factor on the code, whose entries are in -1..1.")


class PaddingEmbeddingConfig(StepConfig):
    """Learned vectors that tell tokens of padding, and of the picture's edge, from tokens inside the picture."""

    type: Literal["padding_embedding"] = "padding_embedding"
    std: NonNegativeFloat = Field(0.02, description="Standard deviation of the two vectors at the start.")


def plan_linear(config: LinearConfig, inputs: Inputs, target: int | None) -> BlockPlan:
    tokens = _single(inputs)
    width = resolve_width(config.width, target, tokens.width)
    return BlockPlan.of(
        tokens.with_width(width),
        params=tokens.width * width + (width if config.bias else 0),
        flops=2 * tokens.tokens * tokens.width * width,
        reads=[tokens],
    )


def plan_mlp(config: MlpConfig, inputs: Inputs, target: int | None) -> BlockPlan:
    tokens = _single(inputs)
    width = resolve_width(config.width, target, tokens.width)
    hidden = config.hidden or width
    if config.activation == "swiglu":
        weights = 2 * tokens.width * hidden + hidden * width
        biases = 0
    else:
        sizes = mlp_widths(tokens.width, hidden, width, config.depth)
        weights = sum(a * b for a, b in pairwise(sizes))
        biases = sum(sizes[1:])
    norm = 2 * tokens.width if config.norm else 0
    return BlockPlan.of(
        tokens.with_width(width),
        params=weights + biases + norm,
        flops=2 * tokens.tokens * weights,
        reads=[tokens],
    )


def mlp_widths(width: int, hidden: int, out: int, depth: int) -> list[int]:
    """Widths along a gelu MLP, first the input's and last the output's."""
    return [width, *[hidden] * (depth - 1), out]


def plan_gated_mlp(config: GatedMlpConfig, inputs: Inputs, target: int | None) -> BlockPlan:
    tokens = _single(inputs)
    # With a residual the block keeps its width: it does not follow what the next consumer would like.
    default = tokens.width if config.residual and config.width is None else target
    width = resolve_width(config.width, default, tokens.width)
    if config.residual and width != tokens.width:
        raise ShapeError(
            f"residual needs the output width {width} to be the input width {tokens.width}",
            field="residual",
            hint="set residual: false, or leave the width out",
        )
    inner = config.expansion * tokens.width
    weights = tokens.width * 2 * inner + inner * width
    norms = 2 * tokens.width + (2 * width if config.final_norm else 0)
    return BlockPlan.of(
        tokens.with_width(width),
        params=weights + 2 * inner + width + norms,
        flops=2 * tokens.tokens * weights,
        reads=[tokens],
    )


def plan_sincos(config: SincosPositionConfig, inputs: Inputs, target: int | None) -> BlockPlan:
    tokens = _single(inputs)
    if tokens.width % 4:
        raise ShapeError(
            f"width {tokens.width} is not a multiple of 4 (sine and cosine on two axes)",
            hint=f"change the width before it to {-(-tokens.width // 4) * 4}",
        )
    if tokens.copies != 1:
        raise ShapeError(f"cannot number {tokens}: positions need one grid", hint="add the code before joining inputs")
    return BlockPlan.of(tokens, reads=[tokens])


def plan_padding_embedding(config: PaddingEmbeddingConfig, inputs: Inputs, target: int | None) -> BlockPlan:
    tokens = _single(inputs)
    # Choosing between two vectors is written as a product with a matrix of two columns.
    return BlockPlan.of(tokens, params=2 * tokens.width, flops=2 * tokens.tokens * 2 * tokens.width, reads=[tokens])


def _single(inputs: Inputs) -> TokenSpec:
    tokens = inputs["input"]
    if isinstance(tokens, LayerStackSpec):
        raise ShapeError(f"expected tokens, got {tokens}", field="input", hint="mix the layers first")
    return tokens


KEEPS_TOKENS = frozenset({"token_count", "grid", "permutation_equivariant", "padding_ignored"})

LINEAR = BlockSpec(
    api=1,
    family="adapters",
    config=LinearConfig,
    plan=plan_linear,
    factory="fusionkit.blocks.adapters.linear:Linear",
    summary="One linear map per token.",
    equation="y = W x + b",
    guarantees=KEEPS_TOKENS,
    examples=({"width": 12}, {"bias": False}),
)

MLP = BlockSpec(
    api=1,
    family="adapters",
    config=MlpConfig,
    plan=plan_mlp,
    factory="fusionkit.blocks.adapters.mlp:make_mlp",
    summary="An MLP per token: gelu (LLaVA, InternVL) or swiglu (Molmo); the usual projector.",
    paper="LLaVA-1.5 2310.03744; Molmo 2409.17146",
    equation="gelu: y = W_2 gelu(W_1 x + b_1) + b_2;  swiglu: y = W_2 (silu(W_1 x) * W_3 x)",
    guarantees=KEEPS_TOKENS,
    examples=({"hidden": 24, "width": 12}, {"activation": "swiglu", "hidden": 20}, {"depth": 3, "norm": True}),
)

GATED_MLP = BlockSpec(
    api=1,
    family="adapters",
    config=GatedMlpConfig,
    plan=plan_gated_mlp,
    factory="fusionkit.blocks.adapters.gated_mlp:GatedMlp",
    summary="LayerNorm, gelu-gated MLP and residual (the spatial stream of the released CoME-VL).",
    equation="a, b = split(W_1 LN(x) + b_1);  y = x + W_2 (a * gelu(b)) + b_2",
    guarantees=KEEPS_TOKENS,
    examples=({"expansion": 2}, {"expansion": 2, "width": 12, "residual": False, "final_norm": True}),
)

SINCOS_POSITION = BlockSpec(
    api=1,
    family="adapters",
    config=SincosPositionConfig,
    plan=plan_sincos,
    factory="fusionkit.blocks.adapters.sincos_position:SincosPosition",
    summary="Adds a fixed 2-D sine and cosine code of every cell's centre; no parameters.",
    equation="y = x + scale [sin, cos](2π y / λ) ⊕ [sin, cos](2π x / λ)",
    guarantees=frozenset({"token_count", "grid", "padding_ignored"}),
    examples=({}, {"scale": 0.5}),
)

PADDING_EMBEDDING = BlockSpec(
    api=1,
    family="adapters",
    config=PaddingEmbeddingConfig,
    plan=plan_padding_embedding,
    factory="fusionkit.blocks.adapters.padding_embedding:PaddingEmbedding",
    summary="Marks padding and the picture's edge with two learned vectors; for croppers that pad (`letterbox`, `fit: letterbox`).",
    paper="Molmo 2409.17146 (pad_and_partial_pad); the released CoME-VL code, semantic stream",
    equation="y = x + e_0 where coverage = 0;  x + e_1 where 0 < coverage < 1;  x elsewhere",
    guarantees=frozenset({"token_count", "grid", "padding_ignored"}),
    examples=({}, {"std": 0.1}),
)
