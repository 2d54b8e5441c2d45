"""Configs and specs of the box tokenizers. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fusionkit.plugin import API_VERSION, BlockConfig, BlockSpec


class CoordinateBinsConfig(BlockConfig):
    """Boxes and points as coordinate tokens: `<BOX><COORD_x0><COORD_y0><COORD_x1><COORD_y1><END_BOX>`."""

    type: Literal["coordinate_bins"] = "coordinate_bins"
    bins: int = Field(
        1000, ge=2, le=65536, description="Number of coordinate tokens, 0 at one edge and bins - 1 at the other."
    )


COORDINATE_BINS = BlockSpec(
    api=API_VERSION,
    family="box_tokenizers",
    config=CoordinateBinsConfig,
    factory="fusionkit.blocks.box_tokenizers.coordinate_bins:CoordinateBins",
    summary="One token per coordinate, in equal bins of the picture's side; exact integer arithmetic.",
    guarantees=frozenset({"box_round_trip"}),
    paper="arXiv 2604.03231",
    equation="Eq. 10-13",
    examples=({"bins": 1000}, {"bins": 100}, {"bins": 2}),
)
