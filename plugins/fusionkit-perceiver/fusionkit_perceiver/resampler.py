"""The Perceiver resampler of Flamingo for any number of inputs. Imported only when a model is built.

Shapes: B crops, M tokens of all inputs together, G latents, W width, H heads, K head width.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusionkit.plugin import BlockSite, Grid, ShapeError, Tokens, input_names
from fusionkit_perceiver.spec import FREQUENCIES, PLACE, ResamplerConfig, inner


class Resampler(nn.Module):
    """Each input is normalised, mapped to one width, and marked with where its tokens are and which input they are of.

    Shapes: any number of inputs x_BND -> x_BGW on the grid of the config. Deviation from Flamingo: positions are those
    in the crop (one code for all grids) instead of times in a video. Invalid tokens are not attended to. Raises
    ShapeError for inputs of another width than planned.
    """

    parameter_roles: ClassVar[dict[str, str]] = {"latents": "embedding", "sources": "embedding"}

    def __init__(self, config: ResamplerConfig, site: BlockSite) -> None:
        super().__init__()
        self.address = site.address
        self.names = tuple(input_names(config))
        self.widths = tuple(site.tokens(name).width for name in self.names)
        self.grid = Grid(*config.grid)
        width = site.output.width
        self.norms = nn.ModuleList(nn.LayerNorm(own) for own in self.widths)
        self.maps = nn.ModuleList(nn.Linear(own, width) for own in self.widths)
        self.places = nn.Linear(PLACE, width, bias=False)
        self.sources = nn.Parameter(torch.randn(len(self.names), width) * 0.02)
        self.latents = nn.Parameter(torch.randn(self.grid.tokens, width) * 0.02)
        self.blocks = nn.ModuleList(
            ResamplerBlock(width, config.heads, inner(config, width)) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, **inputs: Tokens) -> Tokens:
        parts = [inputs[name] for name in self.names]
        found = tuple(part.x_BND.shape[-1] for part in parts)
        if found != self.widths:
            raise ShapeError(f"{self.address}: expected inputs of widths {list(self.widths)}, got {list(found)}")
        memory_BMW = torch.cat([self.embedded(number, part) for number, part in enumerate(parts)], dim=1)
        mask_B1GM = self.attendable(parts)
        # Sums are held in float32, whatever the weights are.
        z_BGW = _at_least_float32(self.latents).expand(len(memory_BMW), -1, -1)
        for block in self.blocks:
            z_BGW = block(z_BGW, memory_BMW, mask_B1GM)
        return Tokens(_normed(self.norm, z_BGW), self.grid)

    def embedded(self, number: int, tokens: Tokens) -> Tensor:
        """Tokens of one input as memory."""
        x_BND = tokens.x_BND
        if tokens.valid_BN is not None:
            # A weight of zero does not keep NaN out of a sum.
            x_BND = x_BND.masked_fill(~tokens.valid_BN[..., None], 0)
        place_NW = self.places(place_code(tokens).to(x_BND))
        mapped_BNW: Tensor = self.maps[number](self.norms[number](x_BND))
        embedded_BNW: Tensor = _at_least_float32(mapped_BNW) + (place_NW + self.sources[number])
        return embedded_BNW

    def attendable(self, parts: list[Tokens]) -> Tensor | None:
        """True where a latent may look: at valid tokens and at all latents; None where everything is valid."""
        if all(part.valid_BN is None for part in parts):
            return None
        shown = [
            part.x_BND.new_ones(part.x_BND.shape[:2], dtype=torch.bool) if part.valid_BN is None else part.valid_BN
            for part in parts
        ]
        latents_BG = shown[0].new_ones(len(shown[0]), self.grid.tokens)
        return torch.cat([*shown, latents_BG], dim=1)[:, None, None]


class ResamplerBlock(nn.Module):
    """Latents attend to the memory and to themselves, then go through an MLP; both are added."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_memory, self.norm_latents, self.norm_mlp = (nn.LayerNorm(width) for _ in range(3))
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, hidden, bias=False), nn.GELU(), nn.Linear(hidden, width, bias=False))

    def forward(self, z_BGW: Tensor, memory_BMW: Tensor, mask_B1GM: Tensor | None) -> Tensor:
        normed_BGW = _normed(self.norm_latents, z_BGW)
        both_BMW = torch.cat([_normed(self.norm_memory, memory_BMW), normed_BGW], dim=1)
        q_BHGK = self._split(self.query(normed_BGW))
        k_BHMK, v_BHMK = (self._split(part) for part in self.key_value(both_BMW).chunk(2, dim=-1))
        read_BHGK = F.scaled_dot_product_attention(q_BHGK, k_BHMK, v_BHMK, attn_mask=mask_B1GM)
        z_BGW = z_BGW + self.out(read_BHGK.transpose(1, 2).flatten(2))
        added_BGW: Tensor = self.mlp(_normed(self.norm_mlp, z_BGW))
        return z_BGW + added_BGW

    def _split(self, x_BNW: Tensor) -> Tensor:
        x_BNHK: Tensor = x_BNW.unflatten(-1, (self.heads, x_BNW.shape[-1] // self.heads))
        return x_BNHK.transpose(1, 2)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _normed(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """The norm in the precision of `x`, its result in that of the weights."""
    normed = F.layer_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)
    return normed.to(norm.weight.dtype)


def place_code(tokens: Tokens) -> Tensor:
    """Sine and cosine of the centres of the grid's cells in the crop, in octaves. Shapes: -> [N, PLACE], float32."""
    frame, grid, device = tokens.frame, tokens.grid, tokens.x_BND.device
    y_h = frame.y0 + (torch.arange(grid.height, device=device) + 0.5) / grid.height * (frame.y1 - frame.y0)
    x_w = frame.x0 + (torch.arange(grid.width, device=device) + 0.5) / grid.width * (frame.x1 - frame.x0)
    centres_N2 = torch.stack(torch.meshgrid(y_h, x_w, indexing="ij"), dim=-1).flatten(0, 1)
    waves_F = math.pi * 2.0 ** torch.arange(FREQUENCIES, device=device)
    angles_NF = (centres_N2[..., None] * waves_F).flatten(1)
    return torch.cat([angles_NF.sin(), angles_NF.cos()], dim=-1)
