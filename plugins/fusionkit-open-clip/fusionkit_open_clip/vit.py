"""The tower itself: OpenCLIP's `VisionTransformer`, built no deeper than it is read. Imported to build a model.

Shapes: B crops, N patch tokens, D width; x_BTD has the class token in front.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from open_clip.model import QuickGELU
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from fusionkit.plugin import BlockSite, EncoderInfo, ShapeError
from fusionkit_open_clip.architecture import PREFIX_TOKENS, tower
from fusionkit_open_clip.spec import RANDOM, VitConfig
from fusionkit_open_clip.weights import load_tower


class Vit(nn.Module):
    """Layer 0 is the input of block 1 (after positions and `ln_pre`), layer l the output of block l.

    Shapes: x_BCHW -> one x_BND per layer, row-major, class token stripped. Raises BuildError when weights cannot be had
    or do not fit, ShapeError for pixels or layers it was not built for.
    """

    def __init__(self, config: VitConfig, site: BlockSite) -> None:
        super().__init__()
        if not isinstance(site.info, EncoderInfo):
            raise ShapeError(f"{site.address}: an encoder needs its description in its site")
        self.kept = max(site.layers)
        self.input_size = site.info.input_size
        shape = tower(config.model)
        self.visual = VisionTransformer(
            image_size=self.input_size,
            patch_size=shape.patch,
            width=shape.width,
            layers=self.kept,
            heads=shape.heads,
            mlp_ratio=shape.hidden / shape.width,
            ls_init_value=shape.layer_scale,
            no_ln_pre=not shape.norm_before,
            act_layer=QuickGELU if shape.quick_gelu else nn.GELU,
            output_dim=1,
        )
        self.visual.ln_post, self.visual.proj = nn.Identity(), None
        if config.weights != RANDOM and torch.get_default_device().type != "meta":
            load_tower(self.visual, config, shape)

    def forward_layers(self, x_BCHW: Tensor, layers: Sequence[int]) -> list[Tensor]:
        found: dict[int, Tensor] = {}
        self.tap(x_BCHW, layers, found.__setitem__)
        return [found[layer] for layer in layers]

    def tap(self, x_BCHW: Tensor, layers: Sequence[int], consume: Callable[[int, Tensor], None]) -> None:
        """Hand out each layer as soon as it is there."""
        if tuple(x_BCHW.shape[1:]) != (3, *self.input_size):
            raise ShapeError(f"openclip.vit: expected pixels of {(3, *self.input_size)}, got {tuple(x_BCHW.shape[1:])}")
        if absent := [layer for layer in layers if not 0 <= layer <= self.kept]:
            raise ShapeError(f"openclip.vit: layers {absent} are not there; built with 0..{self.kept}")
        x_BTD = self.visual._embeds(x_BCHW)
        if 0 in layers:
            consume(0, x_BTD[:, PREFIX_TOKENS:])
        for layer, block in enumerate(self.visual.transformer.resblocks[: max(layers)], start=1):
            x_BTD = block(x_BTD)
            if layer in layers:
                consume(layer, x_BTD[:, PREFIX_TOKENS:])
