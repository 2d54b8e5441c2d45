"""One crop: the whole picture, stretched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fusionkit.blocks.croppers.crops import Crops
from fusionkit.blocks.croppers.one_crop import OneCrop
from fusionkit.blocks.croppers.sampling import crop, sample
from fusionkit.blocks.croppers.specs import ResizeConfig
from fusionkit.geometry import Box
from fusionkit.plugin import BlockSite, EncoderInfo

if TYPE_CHECKING:
    from PIL.Image import Image


class Resize(OneCrop):
    """The picture as it is, at every stream's input size; its aspect ratio is not kept."""

    def __init__(self, config: ResizeConfig, site: BlockSite | None = None) -> None:
        self.config = config

    def split(self, image: Image, streams: Mapping[str, EncoderInfo]) -> Crops:
        """One crop of an RGB picture."""
        region = Box(0, 0, *image.size)
        if self.config.size is not None:
            image = self._canvas(image, self.config.size)
        return Crops((region,), crop(image, [Box(0, 0, *image.size)], streams, self.config))

    def _canvas(self, image: Image, side: int) -> Image:
        from PIL import Image as Pillow

        if image.size == (side, side):
            return image
        return Pillow.fromarray(sample(image, Box(0, 0, *image.size), (side, side), self.config))
