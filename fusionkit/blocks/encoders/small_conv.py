"""`small_conv`: strided convolutions, then transformer blocks; to train from scratch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fusionkit.blocks.encoders.base import PlainEncoder
from fusionkit.blocks.encoders.specs import SmallConvConfig, mlp_width
from fusionkit.blocks.encoders.transformer import Block
from fusionkit.plugin import BlockSite


class SmallConv(PlainEncoder):
    """3x3 convolutions with norm and GELU down to one grid, learned positions, pre-norm blocks.

    Shapes: x_BCHW -> layers x_BND, N = H W / stride², stride the product of the convolutions' strides.

    Units: at layer 0 token i looks at the pixels around S i + 1/2, S the stride, not around the middle S (i + 1/2) of
    its cell: (S - 1) / 2 pixels towards the top and left, as everywhere where 3x3 convolutions with a padding of 1
    take strides of 2. It sees its whole cell all the same, and the blocks above see every cell. Kept as it is: other
    padding would be another encoder, and no even stride has a 3x3 window in its middle.
    """

    def __init__(self, config: SmallConvConfig, site: BlockSite) -> None:
        super().__init__(site)
        stages: list[nn.Module] = []
        channels = 3
        for width, stride in zip(config.widths, config.strides, strict=True):
            stages += [
                nn.Conv2d(channels, width, 3, stride=stride, padding=1),
                nn.GroupNorm(1, width),
                nn.GELU(),
            ]
            channels = width
        self.stages = nn.Sequential(*stages)
        hidden = mlp_width(channels, config.mlp_ratio)
        self.blocks.extend(Block(channels, config.heads, hidden) for _ in range(self.kept))

    def stem(self, x_BCHW: Tensor) -> Tensor:
        # Channels last: about a third faster on CPU, and the flattened result needs no copy.
        x_BDhw: Tensor = self.stages(x_BCHW.contiguous(memory_format=torch.channels_last))
        return x_BDhw.flatten(2).transpose(1, 2)
