"""Where the visual tokens of a batch stand in its rows of text: what injectors inside the decoder need to know.

Shapes: B rows of text, T tokens, V visual tokens placed, C crops of the row that has most.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fusionkit.errors import ShapeError
from fusionkit.ops.packing import Packed
from fusionkit.ops.tokens import Tokens

NEVER = 2**62
"""A position that no row reaches."""


class Placement(NamedTuple):
    """Which positions are image tokens, which visual token each of them takes, and which crops a row shows.

    Shapes: image_BT bool; index_V rows of the fused tokens flattened to [crops * N, E], row-major over the True
    positions; crops_BC the crops of each row, starts_BC the position of each one's first token, and ends_BC the position
    after the last token that may see it (NEVER where the row is one sample's), -1, T and T where a row has fewer than C.
    """

    image_BT: Tensor
    index_V: Tensor
    crops_BC: Tensor
    starts_BC: Tensor
    ends_BC: Tensor
    tokens_per_crop: int

    @classmethod
    def of(cls, image_BT: Tensor, index_V: Tensor, tokens_per_crop: int, packed: Packed | None = None) -> Placement:
        """`packed` says where samples begin and end in rows that hold several: a crop is seen within its own only.

        Raises ShapeError when there are more or fewer indices than image tokens.
        """
        rows_V, places_V = image_BT.nonzero(as_tuple=True)
        if len(rows_V) != len(index_V):
            raise ShapeError(f"{len(rows_V)} <image> positions for {len(index_V)} visual vectors")
        crop_V = index_V // tokens_per_crop
        sample_V = torch.zeros_like(rows_V) if packed is None else packed.sample_BT[rows_V, places_V]
        # One entry for each crop that a sample in a row shows, in the order of rows, samples, crops.
        shown, entry_V = torch.unique(torch.stack((rows_V, sample_V, crop_V), dim=1), dim=0, return_inverse=True)
        first_S = places_V.new_full((len(shown),), image_BT.shape[1]).scatter_reduce(0, entry_V, places_V, "amin")
        counts_B = torch.bincount(shown[:, 0], minlength=len(image_BT))
        slot_S = torch.arange(len(shown), device=shown.device) - (counts_B.cumsum(0) - counts_B)[shown[:, 0]]
        crops = int(counts_B.max()) if len(shown) else 0
        crops_BC = index_V.new_full((len(image_BT), crops), -1)
        starts_BC = index_V.new_full((len(image_BT), crops), image_BT.shape[1])
        ends_BC = starts_BC.clone()
        crops_BC[shown[:, 0], slot_S] = shown[:, 2]
        starts_BC[shown[:, 0], slot_S] = first_S
        ends_BC[shown[:, 0], slot_S] = NEVER if packed is None else packed.ends()[shown[:, 0], first_S]
        return cls(image_BT, index_V, crops_BC, starts_BC, ends_BC, tokens_per_crop)

    def spread(self, tokens: Tokens, address: str) -> Tensor:
        """Every placed token at its position, zeros elsewhere: [B, T, E].

        Raises ShapeError unless crops have as many tokens as stand in the text.
        """
        if tokens.x_BND.shape[1] != self.tokens_per_crop:
            raise ShapeError(
                f"{address or 'injector'}: {tokens.x_BND.shape[1]} tokens per crop, {self.tokens_per_crop} in the text"
            )
        visual_VE = tokens.x_BND.flatten(0, 1)[self.index_V]
        empty_BTE = visual_VE.new_zeros(*self.image_BT.shape, visual_VE.shape[-1])
        return empty_BTE.masked_scatter(self.image_BT[..., None], visual_VE)
