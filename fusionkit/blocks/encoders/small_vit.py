"""`small_vit`: a plain ViT to train from scratch."""

from __future__ import annotations

from torch import Tensor, nn

from fusionkit.blocks.encoders.base import PlainEncoder
from fusionkit.blocks.encoders.specs import SmallVitConfig, mlp_width
from fusionkit.blocks.encoders.transformer import Block
from fusionkit.plugin import BlockSite


class SmallVit(PlainEncoder):
    """Patch embedding, learned positions, pre-norm blocks.

    Shapes: x_BCHW -> layers x_BND, N = (H / patch) (W / patch).

    Example:
        site = BlockSite(info=describe_small_vit(config), layers=(1, 2))
        layers = SmallVit(config, site)(torch.zeros(1, 3, 48, 48))
    """

    def __init__(self, config: SmallVitConfig, site: BlockSite) -> None:
        super().__init__(site)
        self.patches = nn.Conv2d(3, config.width, config.patch, stride=config.patch)
        nn.init.xavier_uniform_(self.patches.weight.flatten(1))
        nn.init.zeros_(self.patches.bias)  # type: ignore[arg-type]
        hidden = mlp_width(config.width, config.mlp_ratio)
        self.blocks.extend(Block(config.width, config.heads, hidden) for _ in range(self.kept))

    def stem(self, x_BCHW: Tensor) -> Tensor:
        x_BDhw: Tensor = self.patches(x_BCHW)
        return x_BDhw.flatten(2).transpose(1, 2)
