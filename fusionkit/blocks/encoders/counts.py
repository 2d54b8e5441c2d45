"""Parameters and FLOPs of an encoder pruned after a layer. Torch-free.

Equation: with N patch tokens, P prefix tokens, T = N + P and the first l blocks kept,
params = stem + N * position + l * block and flops = N * stem + l * (T * block + T² * attention).
"""

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from fusionkit.errors import ShapeError
from fusionkit.geometry import Grid


class Costs(BaseModel):
    """What the parts of an encoder cost, for layers that all lie on one grid.

    Units: parameters are numbers; FLOPs count matrix products and convolutions at 2 per multiply-add.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", defer_build=True)

    stem_params: NonNegativeInt = Field(description="Parameters before block 1, without those counted per position.")
    position_params: NonNegativeInt = Field(description="Parameters per patch token (a learned position embedding).")
    block_params: NonNegativeInt = Field(description="Parameters of one block.")
    stem_flops: NonNegativeInt = Field(description="FLOPs before block 1, per patch token.")
    block_flops: NonNegativeInt = Field(description="FLOPs of one block per token, attention between tokens left out.")
    attention_flops: NonNegativeInt = Field(description="FLOPs of one block per pair of tokens; 0 for convolutions.")

    def params(self, deepest: int, grid: Grid) -> int:
        """Parameters of the encoder with its first `deepest` blocks, no final norm and no head."""
        return self.stem_params + self.position_params * grid.tokens + deepest * self.block_params

    def flops(self, deepest: int, grid: Grid, prefix_tokens: int) -> int:
        """Forward FLOPs of the same encoder for one crop whose patch tokens are `grid`."""
        tokens = grid.tokens + prefix_tokens
        return self.stem_flops * grid.tokens + deepest * (
            self.block_flops * tokens + self.attention_flops * tokens * tokens
        )


def transformer_block_costs(width: int, hidden: int) -> tuple[int, int, int]:
    """(parameters, FLOPs per token, FLOPs per pair of tokens) of `transformer.Block` with MLP width `hidden`."""
    weights = 4 * width * width + 2 * width * hidden
    params = weights + 5 * width + hidden + 4 * width
    return params, 2 * weights, 4 * width


def check_deepest(deepest: int, depth: int) -> None:
    """Raises ShapeError when the encoder has no layer `deepest`."""
    if not 0 <= deepest <= depth:
        raise ShapeError(f"layer {deepest} is outside the encoder's layers 0..{depth}", field="select")


class Level(Costs):
    """The layers of an encoder at one stride: 0..depth, all on one grid. Part of `Architecture`."""

    depth: PositiveInt = Field(description="Blocks on this grid; the last layer's number.")
    width: PositiveInt = Field(description="Width of a token.")
    stride: tuple[PositiveInt, PositiveInt] = Field(description="Patch height and width in pixels.")
    heads: PositiveInt | None = Field(None, description="Attention heads, where there are any.")
    mlp: PositiveInt | None = Field(None, description="Inner width of a block's MLP.")


class Architecture(BaseModel):
    """What must be known of a named encoder to plan with it and not load it.

    `python -m fusionkit.testing.architectures NAME` prints it for any name its library knows.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", defer_build=True)

    hub_id: str = Field("", description="Where its pretrained weights live on the Hugging Face hub.")
    licence: str = Field(description="Licence of the pretrained weights, as the library states it.")
    input_size: tuple[PositiveInt, PositiveInt] = Field(description="Height and width in pixels it was trained for.")
    fixed_size: bool = Field(description="Whether the model is built for one input size.")
    mean: tuple[float, float, float] = Field(description="Per-channel mean of its input, for pixels in 0..1.")
    std: tuple[float, float, float] = Field(description="Per-channel standard deviation of its input.")
    prefix_tokens: NonNegativeInt = Field(description="Tokens before the patch tokens (class token, registers).")
    levels: tuple[Level, ...] = Field(min_length=1, description="One entry per stride that layers can be read at.")
