"""Three small encoders that are no square ViT, written as a third party would: from `fusionkit.plugin` alone.

`test.strides` computes its layers at strides 4, 8 and 16 and hands them out on the grid of stride 8; `test.oblong` has
patches and an input of unequal sides; `test.naflex` takes pictures of any shape inside its input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from torch import Tensor, nn
from torch import ones as torch_ones
from torch.nn import functional as F

from fusionkit.plugin import BlockConfig, BlockSite, BlockSpec, EncoderInfo, Grid, ShapeError

COMMON: Any = {"prefix_tokens": 0, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "licence": "none"}


class Odd(nn.Module):
    """The layers of `states()`, one by one."""

    def __init__(self, config: BlockConfig, site: BlockSite) -> None:
        super().__init__()
        self.kept = max(site.layers)
        self.build()

    def build(self) -> None:
        raise NotImplementedError

    def states(self, x_BCHW: Tensor, coverage_BN: Tensor | None) -> Iterator[Tensor]:
        """Layer 0, layer 1, ... as x_BND."""
        raise NotImplementedError

    def forward_layers(self, x_BCHW: Tensor, layers: Sequence[int], coverage_BN: Tensor | None = None) -> list[Tensor]:
        found: dict[int, Tensor] = {}
        self.tap(x_BCHW, layers, found.__setitem__, coverage_BN)
        return [found[layer] for layer in layers]

    def tap(
        self,
        x_BCHW: Tensor,
        layers: Sequence[int],
        consume: Callable[[int, Tensor], None],
        coverage_BN: Tensor | None = None,
    ) -> None:
        if not all(0 <= layer <= self.kept for layer in layers):
            raise ShapeError(f"built with layers 0..{self.kept}, asked for {list(layers)}")
        for layer, x_BND in enumerate(self.states(x_BCHW, coverage_BN)):
            if layer in layers:
                consume(layer, x_BND)
            if layer == max(layers):
                break


# ---------------------------------------------------------------------------------------------- several strides
WIDTHS, STRIDES = (8, 8, 12, 16), (4, 4, 8, 16)


class StridesConfig(BlockConfig):
    type: Literal["test.strides"] = "test.strides"


def describe_strides(config: StridesConfig) -> EncoderInfo:
    weights = [3 * 16 * 8, 64, 4 * 8 * 12, 4 * 12 * 16]

    def count_flops(deepest: int, grid: Grid) -> int:
        return sum(2 * weights[layer] * grid.tokens * 64 // STRIDES[layer] ** 2 for layer in range(deepest + 1))

    return EncoderInfo(
        depth=3,
        width=16,
        stride=(8, 8),
        input_size=(32, 48),
        **COMMON,
        count_params=lambda deepest: sum(weights[layer] + WIDTHS[layer] for layer in range(deepest + 1)),
        count_flops=count_flops,
        layer_strides=tuple((stride, stride) for stride in STRIDES),
    )


class Strides(Odd):
    """Finer layers are averaged, coarser ones repeated, narrower ones padded with zeros."""

    def build(self) -> None:
        convolutions = [nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 12, 2, 2), nn.Conv2d(12, 16, 2, 2)]
        self.convolutions = nn.ModuleList(convolutions[: self.kept + 1])

    def states(self, x_BCHW: Tensor, coverage_BN: Tensor | None) -> Iterator[Tensor]:
        for convolution, stride in zip(self.convolutions, STRIDES, strict=False):
            x_BCHW = convolution(x_BCHW).tanh()
            same_BDhw = F.avg_pool2d(x_BCHW, 8 // stride) if stride <= 8 else F.interpolate(x_BCHW, scale_factor=2)
            yield F.pad(same_BDhw.flatten(2).transpose(1, 2), (0, 16 - same_BDhw.shape[1]))


# ------------------------------------------------------------------------------------------ patches of any shape
class OblongConfig(BlockConfig):
    type: Literal["test.oblong"] = "test.oblong"


def describe_oblong(config: OblongConfig) -> EncoderInfo:
    return EncoderInfo(
        depth=2,
        width=12,
        stride=(4, 8),
        input_size=(24, 64),
        **COMMON,
        count_params=lambda deepest: (96 + 1) * 12 + deepest * (144 + 12),
        count_flops=lambda deepest, grid: 2 * grid.tokens * (96 * 12 + deepest * 144),
    )


class Oblong(Odd):
    def build(self) -> None:
        self.stem = nn.Conv2d(3, 12, (4, 8), (4, 8))
        self.blocks = nn.ModuleList(nn.Linear(12, 12) for _ in range(self.kept))

    def states(self, x_BCHW: Tensor, coverage_BN: Tensor | None) -> Iterator[Tensor]:
        x_BND = self.stem(x_BCHW).flatten(2).transpose(1, 2)
        yield x_BND
        for block in self.blocks:
            x_BND = x_BND + block(x_BND).tanh()
            yield x_BND


# ------------------------------------------------------------------------------------------ pictures of any shape
class NaflexConfig(BlockConfig):
    type: Literal["test.naflex"] = "test.naflex"


def describe_naflex(config: NaflexConfig) -> EncoderInfo:
    return EncoderInfo(
        depth=2,
        width=16,
        stride=(8, 8),
        input_size=(32, 32),
        **COMMON,
        count_params=lambda deepest: (192 + 1) * 16 + 2 * 16 + deepest * 4 * (256 + 16),
        count_flops=lambda deepest, grid: (
            2 * grid.tokens * (192 * 16 + deepest * 4 * 256) + deepest * 4 * grid.tokens**2 * 16
        ),
        reads_coverage=True,
    )


class Naflex(Odd):
    """Attention among the patches that show the picture; positions count from its own corner, in its own sides."""

    def build(self) -> None:
        self.stem = nn.Conv2d(3, 16, 8, 8)
        self.slopes = nn.Parameter(torch_ones(2, 16))
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"qkv": nn.Linear(16, 48), "out": nn.Linear(16, 16)}) for _ in range(self.kept)
        )

    def attendable(self, coverage_BN: Tensor) -> Tensor | None:
        return coverage_BN[:, None] > 0

    def states(self, x_BCHW: Tensor, coverage_BN: Tensor | None) -> Iterator[Tensor]:
        x_BDhw = self.stem(x_BCHW)
        batch, _, rows, columns = x_BDhw.shape
        if coverage_BN is None:
            coverage_BN = x_BDhw.new_ones(batch, rows * columns)
        cells_Bhw = coverage_BN.to(x_BDhw).unflatten(1, (rows, columns)) > 0
        y_Bh, x_Bw = (_places(cells_Bhw.any(axis).to(x_BDhw)) for axis in (2, 1))
        grid_BhwD = y_Bh[:, :, None, None] * self.slopes[0] + x_Bw[:, None, :, None] * self.slopes[1]
        x_BND = x_BDhw.flatten(2).transpose(1, 2) + grid_BhwD.flatten(1, 2)
        yield x_BND
        mask_B1N = self.attendable(coverage_BN)
        for block in self.blocks:
            q, k, v = block["qkv"](x_BND).chunk(3, dim=-1)
            logits_BNN = q @ k.transpose(1, 2) / 4
            if mask_B1N is not None:
                logits_BNN = logits_BNN.masked_fill(~mask_B1N, float("-inf"))
            x_BND = x_BND + block["out"](logits_BNN.softmax(-1) @ v)
            yield x_BND


def _places(shown_BL: Tensor) -> Tensor:
    """Along one side: where the centre of each cell is, from 0 to 1 over the cells that show something."""
    return (shown_BL.cumsum(1) - 0.5) / shown_BL.sum(1, keepdim=True).clamp(min=1)


def _spec(name: str, config: type[BlockConfig], describe: Callable[[Any], EncoderInfo], *guarantees: str) -> BlockSpec:
    return BlockSpec(
        api=1,
        family="encoders",
        config=config,
        describe=describe,
        factory=f"odd_encoders:{name}",
        guarantees=frozenset(guarantees),
        summary="For tests.",
    )


STRIDES_SPEC = _spec("Strides", StridesConfig, describe_strides)
OBLONG_SPEC = _spec("Oblong", OblongConfig, describe_oblong)
NAFLEX_SPEC = _spec("Naflex", NaflexConfig, describe_naflex, "padding_ignored")
