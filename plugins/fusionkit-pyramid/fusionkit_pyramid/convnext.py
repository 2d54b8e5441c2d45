"""A timm ConvNeXt, built no deeper than it is read, its layers brought to one grid. Imported to build a model.

Shapes: B crops, h x w cells at a layer's own stride, N tokens of the grid, D the width of the last stage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusionkit.plugin import BlockSite, BuildError, EncoderInfo, ShapeError
from fusionkit_pyramid.shape import shape_of
from fusionkit_pyramid.spec import PRETRAINED, RANDOM, ConvnextConfig


class Convnext(nn.Module):
    """Layer 0 is the stem's output, layer l the output of block l.

    Shapes: x_BCHW -> one x_BND per layer. A layer of finer stride is averaged over the cells of a token, one of coarser
    stride repeated in all tokens it covers, and channels that a stage does not have are zero: no weight is added, and a
    mixer with a map for each layer (`linear_sum`, `orthogonal`) reads every stage as it is.

    Raises BuildError when weights cannot be had or are normalised otherwise, ShapeError for pixels or layers it was not
    built for.
    """

    def __init__(self, config: ConvnextConfig, site: BlockSite) -> None:
        super().__init__()
        if not isinstance(site.info, EncoderInfo):
            raise ShapeError(f"{site.address}: an encoder needs its description in its site")
        self.info = site.info
        self.kept = max(site.layers)
        model = _create(config)
        self.stem = model.stem
        self.stages = nn.ModuleList(
            Stage(model.stages[stage], blocks) for stage, blocks in shape_of(config.model).kept(self.kept)
        )

    def forward_layers(self, x_BCHW: Tensor, layers: Sequence[int]) -> list[Tensor]:
        found: dict[int, Tensor] = {}
        self.tap(x_BCHW, layers, found.__setitem__)
        return [found[layer] for layer in layers]

    def tap(self, x_BCHW: Tensor, layers: Sequence[int], consume: Callable[[int, Tensor], None]) -> None:
        """Hand out each layer as soon as it is there."""
        if tuple(x_BCHW.shape[1:]) != (3, *self.info.input_size):
            raise ShapeError(
                f"pyramid.convnext: expected pixels of {(3, *self.info.input_size)}, got {tuple(x_BCHW.shape[1:])}"
            )
        if absent := [layer for layer in layers if not 0 <= layer <= self.kept]:
            raise ShapeError(f"pyramid.convnext: layers {absent} are not there; built with 0..{self.kept}")
        x_BDhw = self.stem(x_BCHW)
        if 0 in layers:
            consume(0, self.on_grid(x_BDhw))
        layer = 0
        for stage in cast(Sequence[Stage], self.stages):
            if layer == max(layers):
                return
            x_BDhw = stage.downsample(x_BDhw)
            for block in stage.blocks:
                x_BDhw = block(x_BDhw)
                layer += 1
                if layer in layers:
                    consume(layer, self.on_grid(x_BDhw))

    def on_grid(self, x_BDhw: Tensor) -> Tensor:
        """Cells of any of the strides as x_BND on the grid."""
        grid, cells = self.info.grid, x_BDhw.shape[2]
        if cells > grid.height:
            x_BDhw = F.avg_pool2d(x_BDhw, cells // grid.height)
        elif cells < grid.height:
            x_BDhw = F.interpolate(x_BDhw, size=(grid.height, grid.width), mode="nearest-exact")
        return F.pad(x_BDhw.flatten(2).transpose(1, 2), (0, self.info.width - x_BDhw.shape[1]))


class Stage(nn.Module):
    """The first blocks of a timm stage, and what brings its input to its stride."""

    def __init__(self, stage: Any, blocks: int) -> None:
        super().__init__()
        self.downsample: nn.Module = stage.downsample
        self.blocks = nn.ModuleList(stage.blocks[:blocks])


def _create(config: ConvnextConfig) -> Any:
    """The whole timm model with the weights that the config names; none are read to build without storage."""
    if config.weights == RANDOM or torch.get_default_device().type == "meta":
        return timm.create_model(config.model, pretrained=False)
    options: dict[str, Any] = {}
    if config.weights != PRETRAINED:
        file = Path(config.weights).expanduser()
        if not file.is_file():
            raise BuildError(f"weights '{config.weights}': no such file; expected pretrained, random or a path")
        options["pretrained_cfg_overlay"] = {"file": str(file), "custom_load": False}
    try:
        model: Any = timm.create_model(config.model, pretrained=True, **options)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise BuildError(
            f"weights '{config.weights}' of {config.model} cannot be had: {reason}; give `weights:` the path of its "
            ".safetensors file, or say random"
        ) from error
    for fact, ours in (("mean", config.mean), ("std", config.std)):
        theirs = tuple(model.pretrained_cfg[fact])
        if ours != theirs:
            raise BuildError(f"{config.model} wants {fact}: {list(theirs)}, the recipe says {list(ours)}")
    return model
