"""What fusionkit knows of `perceiver.resampler` before building it. Torch-free.

Letters: M tokens of all inputs, G latents, W width, H inner width of the MLP.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from fusionkit.plugin import (
    BlockConfig,
    BlockPlan,
    BlockSpec,
    Grid,
    InputName,
    LayerStackSpec,
    ShapeError,
    TokenSpec,
    Width,
    resolve_width,
)

FREQUENCIES = 8
"""Octaves of the position code, from one wave per two crop sides."""
PLACE = 4 * FREQUENCIES
"""Numbers that say where a token is: sine and cosine of y and x at each frequency."""


class ResamplerConfig(BlockConfig):
    """Learned latents that read the tokens of all inputs."""

    type: Literal["perceiver.resampler"] = "perceiver.resampler"
    inputs: tuple[InputName, ...] = Field(min_length=1, description="Streams or steps to read; any grids, any widths.")
    grid: tuple[PositiveInt, PositiveInt] = Field((8, 8), description="Latents that come out, as [rows, columns].")
    depth: PositiveInt = Field(2, description="Blocks of attention and MLP.")
    heads: PositiveInt = Field(8, description="Attention heads; must divide the width.")
    width: Width | None = Field(
        None, description="Output width; by default what follows needs, else the first input's."
    )
    mlp_ratio: PositiveFloat = Field(4.0, description="Inner width of the MLP over the width.")


def plan(config: ResamplerConfig, inputs: Mapping[str, TokenSpec | LayerStackSpec], target: int | None) -> BlockPlan:
    """Latents on their own grid, whatever comes in; raises ShapeError for layers, joined grids and odd heads."""
    read = [_tokens(name, spec) for name, spec in inputs.items()]
    width = resolve_width(config.width, target, read[0].width)
    if width % config.heads:
        raise ShapeError(f"{config.heads} heads do not divide the width {width}", field="heads")
    latents, memory, hidden = config.grid[0] * config.grid[1], sum(spec.tokens for spec in read), inner(config, width)
    matrices = 4 * width * width + 2 * width * hidden
    params = (
        sum(2 * spec.width + (spec.width + 2) * width for spec in read)
        + (PLACE + latents + 2) * width
        + config.depth * (matrices + 6 * width)
    )
    per_block = (
        latents * (2 * width * width + 2 * width * hidden)
        + (memory + latents) * 2 * width * width
        + 2 * latents * (memory + latents) * width
    )
    flops = 2 * (sum(spec.tokens * spec.width * width for spec in read) + memory * PLACE * width)
    output = TokenSpec(Grid(*config.grid), width)
    return BlockPlan.of(output, params=params, flops=flops + 2 * config.depth * per_block, reads=read)


def inner(config: ResamplerConfig, width: int) -> int:
    """Inner width of the MLP."""
    return max(1, round(config.mlp_ratio * width))


def _tokens(name: str, spec: TokenSpec | LayerStackSpec) -> TokenSpec:
    if isinstance(spec, LayerStackSpec):
        raise ShapeError(f"input '{name}' is {spec}; expected tokens", field="inputs", hint="mix the layers first")
    if spec.copies > 1:
        raise ShapeError(
            f"input '{name}' is {spec}, joined from {spec.copies} grids",
            field="inputs",
            hint="name what was joined instead: the resampler reads several inputs",
        )
    return spec


RESAMPLER = BlockSpec(
    api=1,
    family="connectors",
    config=ResamplerConfig,
    plan=plan,
    factory="fusionkit_perceiver.resampler:Resampler",
    paper="Alayrac et al. 2022, Flamingo (arXiv 2204.14198), Section 2.1 and Appendix A.1.1",
    equation="z <- z + Attention(LN z, [LN m; LN z]); z <- z + MLP(LN z)",
    summary="Learned latents attend to all tokens of all inputs: however many come in, a fixed number goes out.",
    guarantees=frozenset({"padding_ignored"}),
    examples=(
        {"inputs": ["semantic", "spatial"], "grid": [2, 3], "heads": 2, "mlp_ratio": 2.0},
        {"inputs": ["semantic"], "grid": [1, 4], "depth": 1, "heads": 4, "width": 24},
    ),
)
