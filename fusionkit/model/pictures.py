"""Pictures of a batch: cropped once each, resampled and normalised for every stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from fusionkit.blocks.croppers.coverage import cell_coverage, reaches_outside
from fusionkit.errors import ShapeError
from fusionkit.geometry import Box, Size
from fusionkit.plugin import EncoderInfo, TokenLayout
from fusionkit.recipe.plan import Plan


@dataclass(frozen=True, slots=True)
class Pictures:
    """Encoder inputs of several pictures, crops of all of them in one flat batch.

    Shapes: pixels name -> [C, 3, H, W]; coverage name -> [C, N], the share of each token's cell that shows the picture,
    empty when no crop has padding; counts, sizes, layouts and regions have one entry per picture.
    """

    pixels: dict[str, Tensor]
    counts: tuple[int, ...]
    sizes: tuple[Size, ...]
    layouts: tuple[TokenLayout, ...]
    regions: tuple[tuple[Box, ...], ...]
    coverage: dict[str, Tensor] = field(default_factory=dict)

    def visual_index(self, tokens_per_crop: int, pictures: Sequence[int]) -> Tensor:
        """Rows of the flattened fused tokens [C*N] for image tokens that show `pictures`, one after the other."""
        starts = [0]
        for count in self.counts:
            starts.append(starts[-1] + count * tokens_per_crop)
        pieces = [
            torch.tensor(self.layouts[picture].patches, dtype=torch.long) + starts[picture] for picture in pictures
        ]
        return torch.cat(pieces) if pieces else torch.zeros(0, dtype=torch.long)


def prepare_pictures(plan: Plan, cropper: Any, images: Sequence[Image], names: Sequence[str] = ()) -> Pictures:
    """Crop decoded RGB pictures and normalise them per stream. `names` is what an error calls them.

    Raises ShapeError when the cropper returns another number of crops than its own layout counts.
    """
    infos = {name: stream.info for name, stream in plan.streams.items()}
    batches: dict[str, list[Tensor]] = {name: [] for name in infos}
    counts, sizes, layouts, regions = [], [], [], []
    for number, image in enumerate(images):
        size = Size(*image.size)
        layout = plan.layout(size)
        crops = cropper.split(image, infos)
        for name in infos:
            pixels_CHW = torch.from_numpy(crops.pixels[name])
            if len(pixels_CHW) != layout.crops:
                where = f"{names[number]}: " if names else ""
                raise ShapeError(
                    f"{where}cropper: {size} picture gives {len(pixels_CHW)} crops for stream {name}, its layout counts {layout.crops}"
                )
            batches[name].append(pixels_CHW)
        counts.append(layout.crops)
        sizes.append(size)
        layouts.append(layout)
        regions.append(tuple(crops.regions))
    return Pictures(
        {name: torch.cat(parts) for name, parts in batches.items() if parts},
        tuple(counts),
        tuple(sizes),
        tuple(layouts),
        tuple(regions),
        _coverage(infos, [(region, size) for size, crops in zip(sizes, regions, strict=True) for region in crops]),
    )


def _coverage(infos: Mapping[str, EncoderInfo], crops: Sequence[tuple[Box, Size]]) -> dict[str, Tensor]:
    """What `Pictures.coverage` holds, from the region of every crop and the size of its picture."""
    if not any(reaches_outside(region, size) for region, size in crops):
        return {}
    return {
        name: torch.tensor([cell_coverage(region, size, info) for region, size in crops])
        for name, info in infos.items()
    }
