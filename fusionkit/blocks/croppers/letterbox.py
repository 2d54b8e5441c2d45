"""One crop: the whole picture in the middle of a black square."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fusionkit.blocks.croppers import tiling
from fusionkit.blocks.croppers.crops import Crops
from fusionkit.blocks.croppers.one_crop import OneCrop
from fusionkit.blocks.croppers.sampling import crop
from fusionkit.blocks.croppers.specs import LetterboxConfig
from fusionkit.geometry import Box, Size
from fusionkit.plugin import BlockSite, EncoderInfo

if TYPE_CHECKING:
    from PIL.Image import Image


class Letterbox(OneCrop):
    """The picture with its aspect ratio kept, at every stream's input size; what is left of the square is black.

    The crop's region reaches outside the picture, so that a place in the crop is one in the picture by the same rule
    as for every other cropper: x = region.x0 + place · (region.x1 - region.x0), place in 0..1.
    """

    def __init__(self, config: LetterboxConfig, site: BlockSite | None = None) -> None:
        self.config = config

    def region(self, size: Size, side: int) -> Box:
        """What the crop sees, in pixels of the picture, when the square has `side` pixels.

        The picture takes whole pixels of the square, at least one: a strip of no pixel would not be seen at all.
        """
        return tiling.letterboxed(Box(0, 0, side, side), Size(side, side), size)

    def split(self, image: Image, streams: Mapping[str, EncoderInfo]) -> Crops:
        """One crop of an RGB picture."""
        side = self.config.size or min(min(info.input_size) for info in streams.values())
        region = self.region(Size(*image.size), side)
        return Crops((region,), crop(image, [region], streams, self.config))
