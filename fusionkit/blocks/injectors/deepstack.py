"""Visual vectors added to the hidden states of the `<image>` positions inside the decoder."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fusionkit.blocks.injectors.specs import DeepstackConfig
from fusionkit.errors import ShapeError
from fusionkit.ops.placement import Placement
from fusionkit.ops.tokens import Tokens
from fusionkit.plugin import BlockSite


class Deepstack(nn.Module):
    """Injection at several depths: each of `layers` gets the same vectors; one injector per level gives each its own.

    Shapes: `prepare` gives [B, T, E]; forward hidden_BTE -> hidden_BTE, `first` being the position in the row of its
    first token (with a cache, what came before is not there again).

    Equation: h_t = h_t + v_{k(t)} where t is an `<image>` token, before (DeepStack) or after (Qwen3-VL) block l.
    """

    def __init__(self, config: DeepstackConfig, site: BlockSite) -> None:
        super().__init__()
        self.address = site.address
        self.layers = config.layers
        self.when = config.when

    def prepare(self, tokens: Tokens, placement: Placement) -> tuple[Tensor, ...]:
        """What the decoder carries, rows first."""
        return (placement.spread(tokens, self.address),)

    def forward(self, hidden_BTE: Tensor, state: tuple[Tensor, ...], layer: int, first: int = 0) -> Tensor:
        length = hidden_BTE.shape[1]
        visual_BTE = state[0][:, first : first + length]
        if visual_BTE.shape[-1] != hidden_BTE.shape[-1]:
            raise ShapeError(
                f"{self.address or 'deepstack'}: visual vectors have width {visual_BTE.shape[-1]}, the decoder "
                f"{hidden_BTE.shape[-1]}",
                hint="read a linear or mlp step of the language model's width",
            )
        added_BTE = F.pad(visual_BTE, (0, 0, 0, length - visual_BTE.shape[1]))
        return hidden_BTE + added_BTE.to(hidden_BTE.dtype)
