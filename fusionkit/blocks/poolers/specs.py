"""Specs of the poolers: fewer tokens on a coarser grid. Torch-free.

Windows are (rows, columns) and do not overlap. A grid that the window does not tile is an error unless `uneven`
says how to pad it (right and bottom).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from pydantic import Field, PositiveInt

from fusionkit.plugin import BlockPlan, BlockSpec, Frame, Grid, LayerStackSpec, ShapeError, StepConfig, TokenSpec

Window = tuple[PositiveInt, PositiveInt]
Inputs = Mapping[str, TokenSpec | LayerStackSpec]


class AveragePoolConfig(StepConfig):
    """Mean of every window."""

    type: Literal["average_pool"] = "average_pool"
    window: Window = Field((2, 2), description="Rows and columns of one window.")
    uneven: Literal["error", "pad"] = Field(
        "error",
        description="A grid the window does not tile: an error, or pad it right and bottom and leave the padding out.",
    )


class AttentionPoolConfig(StepConfig):
    """One attention query per window, the mean of its tokens, over the window's tokens."""

    type: Literal["attention_pool"] = "attention_pool"
    window: Window = Field((2, 2), description="Rows and columns of one window.")
    query: Literal["mean"] = Field("mean", description="What asks for the window: the mean of its tokens.")
    heads: PositiveInt = Field(description="Attention heads; must divide the width.")
    kv_heads: PositiveInt | None = Field(None, description="Heads of keys and values; as many as `heads` if not given.")
    uneven: Literal["error", "pad", "pad_attended"] = Field(
        "error",
        description="A grid the window does not tile: an error; pad it and never attend the padding; or pad it with "
        "zeros that are attended (what the released CoME-VL does).",
    )


class PixelShuffleConfig(StepConfig):
    """Every window becomes one token that holds all its channels."""

    type: Literal["pixel_shuffle"] = "pixel_shuffle"
    window: Window = Field((2, 2), description="Rows and columns of one window.")
    order: Literal["row_column_channel", "channel_row_column"] = Field(
        "row_column_channel",
        description="Order inside the new channels: row_column_channel (InternVL v2, nanoVLM) or "
        "channel_row_column (torch's pixel_unshuffle). Weights after it do not transfer between the two.",
    )


def pooled_tokens(tokens: TokenSpec, window: Window, uneven: str) -> TokenSpec:
    """The shape after pooling; a padded grid covers a frame that reaches past the old one."""
    grid, frame = tokens.grid, tokens.frame
    rows, columns = window
    if tokens.copies != 1:
        raise ShapeError(
            f"cannot pool {tokens}: windows need one grid",
            field="window",
            hint="pool each input before joining them on the token axis",
        )
    down, right = -grid.height % rows, -grid.width % columns
    if (down or right) and uneven == "error":
        raise ShapeError(
            f"window {rows}x{columns} does not tile the grid {grid}",
            field="window",
            hint=f"use a window whose rows divide {grid.height} and columns divide {grid.width}",
        )
    padded = Grid(grid.height + down, grid.width + right)
    covered = Frame(
        frame.x0,
        frame.y0,
        frame.x0 + (frame.x1 - frame.x0) * padded.width / grid.width,
        frame.y0 + (frame.y1 - frame.y0) * padded.height / grid.height,
    )
    return replace(tokens, grid=padded.pooled((rows, columns)), frame=covered)


def plan_average(config: AveragePoolConfig, inputs: Inputs, target: int | None) -> BlockPlan:
    tokens = _single(inputs)
    return BlockPlan.of(pooled_tokens(tokens, config.window, config.uneven), reads=[tokens])


def plan_shuffle(config: PixelShuffleConfig, inputs: Inputs, target: int | None) -> BlockPlan:
    tokens = _single(inputs)
    pooled = pooled_tokens(tokens, config.window, "error")
    rows, columns = config.window
    return BlockPlan.of(pooled.with_width(tokens.width * rows * columns), reads=[tokens])


def plan_attention(config: AttentionPoolConfig, inputs: Inputs, target: int | None) -> BlockPlan:
    tokens = _single(inputs)
    pooled = pooled_tokens(tokens, config.window, config.uneven)
    width, heads = tokens.width, config.heads
    if width % heads:
        raise ShapeError(f"{heads} heads do not divide the width {width}", field="heads", hint=_divisors(width, heads))
    kv_heads = config.kv_heads or heads
    if heads % kv_heads:
        raise ShapeError(
            f"{kv_heads} kv_heads do not divide {heads} heads", field="kv_heads", hint=_divisors(heads, kv_heads)
        )
    kv_width = width // heads * kv_heads
    windows = pooled.tokens
    attended = windows * config.window[0] * config.window[1]
    params = 2 * (width * width + width) + 2 * (width * kv_width + kv_width)
    projections = 2 * windows * width * width * 2 + 2 * attended * width * kv_width * 2
    return BlockPlan.of(pooled, params=params, flops=projections + 4 * attended * width, reads=[tokens])


def _single(inputs: Inputs) -> TokenSpec:
    tokens = inputs["input"]
    if isinstance(tokens, LayerStackSpec):
        raise ShapeError(f"expected tokens, got {tokens}", field="input", hint="mix the layers first")
    return tokens


def _divisors(total: int, wanted: int) -> str:
    near = sorted((d for d in range(1, total + 1) if total % d == 0), key=lambda d: (abs(d - wanted), d))[:3]
    return "use " + " or ".join(str(d) for d in sorted(near))


AVERAGE_POOL = BlockSpec(
    api=1,
    family="poolers",
    config=AveragePoolConfig,
    plan=plan_average,
    factory="fusionkit.blocks.poolers.average_pool:AveragePool",
    summary="Mean of every window; invalid tokens are left out.",
    equation="y_w = mean_{n in w} x_n",
    guarantees=frozenset({"padding_ignored"}),
    examples=({"window": [2, 2]}, {"window": [3, 2], "uneven": "pad"}),
)

ATTENTION_POOL = BlockSpec(
    api=1,
    family="poolers",
    config=AttentionPoolConfig,
    plan=plan_attention,
    factory="fusionkit.blocks.poolers.attention_pool:AttentionPool",
    summary="Attention over every window, asked by the window's mean (grouped heads, no norm, no residual).",
    paper="CoME-VL 2604.03231 section 5 (2x2 pooling); Molmo 2409.17146",
    equation="y_w = W_o softmax(W_q mean(x_w) (W_k x_w)ᵀ / √K) W_v x_w",
    guarantees=frozenset({"padding_ignored"}),
    examples=(
        {"window": [2, 2], "heads": 4},
        {"window": [2, 2], "heads": 4, "kv_heads": 2},
        {"window": [3, 2], "heads": 2, "uneven": "pad"},
    ),
)

PIXEL_SHUFFLE = BlockSpec(
    api=1,
    family="poolers",
    config=PixelShuffleConfig,
    plan=plan_shuffle,
    factory="fusionkit.blocks.poolers.pixel_shuffle:PixelShuffle",
    summary="Every window becomes one wide token: no information is lost, no parameters.",
    equation="y_w = concat_{(r, c) in w} x_{r,c}",
    guarantees=frozenset({"padding_ignored"}),
    examples=({"window": [2, 2]}, {"window": [2, 1], "order": "channel_row_column"}),
)
