"""What a cropper returns: regions of the picture, and their pixels for every stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusionkit.geometry import Box

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Crops:
    """C crops of one picture.

    `regions` are in pixels of the original picture, in the order of the crops, and may reach outside a picture that
    is padded. `pixels` holds per stream a float32 array [C, 3, H, W], normalised by that stream's mean and std.
    """

    regions: tuple[Box, ...]
    pixels: Mapping[str, NDArray[np.float32]]
