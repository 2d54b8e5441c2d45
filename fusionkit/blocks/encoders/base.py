"""What all built-in encoders share: the layer contract and the checks around it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fusionkit.errors import BuildError, ShapeError
from fusionkit.plugin import BlockSite, EncoderInfo


class LayerEncoder(nn.Module):
    """An encoder that hands out layers 0..kept, kept being the deepest layer its site reads.

    Shapes: x_BCHW pixels, already normalised by `info.mean` and `info.std` -> layers x_BND, patch tokens only,
    row-major. Layer 0 is the input of block 1, layer l the output of block l; there is no final norm.
    """

    def __init__(self, site: BlockSite) -> None:
        super().__init__()
        self.info = encoder_info(site)
        self.layers = site.layers
        self.kept = max(site.layers)

    def forward(self, x_BCHW: Tensor) -> list[Tensor]:
        """The layers of the site, in its order."""
        return self.forward_layers(x_BCHW, self.layers)

    def forward_layers(self, x_BCHW: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """One x_BND per entry of `layers`, in that order; raises ShapeError for wrong pixels or an absent layer."""
        found: dict[int, Tensor] = {}
        self.tap(x_BCHW, layers, found.__setitem__)
        return [found[layer] for layer in layers]

    def tap(self, x_BCHW: Tensor, layers: Sequence[int], consume: Callable[[int, Tensor], None]) -> None:
        """Call `consume(layer, x_BND)` for each of `layers`, in rising order, as soon as it is computed.

        The encoder keeps no reference, so what `consume` lets go of is freed. Raises ShapeError as `forward_layers`.
        """
        expected = (3, *self.info.input_size)
        if x_BCHW.ndim != 4 or tuple(x_BCHW.shape[1:]) != expected:
            raise ShapeError(f"{self.info.name}: expected pixels of shape (B, {_join(expected)}), got {_shape(x_BCHW)}")
        wanted = frozenset(layers)
        if absent := sorted(layer for layer in wanted if not 0 <= layer <= self.kept):
            raise ShapeError(
                f"{self.info.name}: layers {absent} are not there; it was built with layers 0..{self.kept} "
                f"of 0..{self.info.depth}"
            )
        if wanted:
            self.run(x_BCHW, wanted, consume)

    @abstractmethod
    def run(self, x_BCHW: Tensor, wanted: frozenset[int], consume: Callable[[int, Tensor], None]) -> None:
        """Do what `tap` says; the arguments have been checked and `wanted` is not empty."""

    def extra_repr(self) -> str:
        return f"{self.info.name}, layers {_join(self.layers)}"


class PlainEncoder(LayerEncoder):
    """A stem to x_BND, learned positions, and blocks: what is trained from scratch here."""

    def __init__(self, site: BlockSite) -> None:
        super().__init__(site)
        self.positions = nn.Parameter(torch.empty(self.info.grid.tokens, self.info.width))
        nn.init.normal_(self.positions, std=0.02)
        self.blocks = nn.ModuleList()

    @abstractmethod
    def stem(self, x_BCHW: Tensor) -> Tensor:
        """Pixels -> x_BND on the grid of `info`."""

    def run(self, x_BCHW: Tensor, wanted: frozenset[int], consume: Callable[[int, Tensor], None]) -> None:
        x_BND = self.stem(x_BCHW) + self.positions
        if 0 in wanted:
            consume(0, x_BND)
        for layer, block in enumerate(self.blocks[: max(wanted)], start=1):
            x_BND = block(x_BND)
            if layer in wanted:
                consume(layer, x_BND)


def encoder_info(site: BlockSite) -> EncoderInfo:
    """The facts at an encoder's site; raises ShapeError if the site has none, or names no layers."""
    if not isinstance(site.info, EncoderInfo) or not site.layers:
        raise ShapeError(
            f"{site.address or 'encoder'}: an encoder needs `info` (its spec's describe(config)) and `layers` "
            "in its site to be built"
        )
    if not 0 <= min(site.layers) <= max(site.layers) <= site.info.depth:
        raise ShapeError(f"layers {list(site.layers)} are not all in 0..{site.info.depth}", field="select")
    return site.info


def check_params(
    model: nn.Module,
    info: EncoderInfo,
    kept: int,
    differs: Callable[[EncoderInfo, str, object, object], BuildError],
) -> None:
    """Raise `differs(info, fact, planned, found)` unless the pruned model has the parameters that were planned."""
    planned, found = info.count_params(kept), sum(parameter.numel() for parameter in model.parameters())
    if planned != found:
        raise differs(info, f"parameters up to layer {kept}", planned, found)


def _join(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _shape(x: Tensor) -> str:
    return f"({_join(x.shape)})"
