"""Pix2Seq's quantised coordinates: y x y x in a chosen number of bins. Torch-free."""

from __future__ import annotations

import re

from fusionkit.blocks.box_tokenizers.yx_tokens import YxTokens, piece_pattern
from fusionkit.geometry import Size


class Pix2Seq(YxTokens):
    """`<bin_0><bin_12><bin_500><bin_999> cat ; ...` in the order y0 x0 y1 x1.

    Pix2Seq has token ids and no text; the spelling `<bin_k>` is ours. A number is round-half-even((B - 1) x / W),
    decoded k W / (B - 1). Error: W / (2 (B - 1)) pixels.

    Example:
        >>> from fusionkit.blocks.box_tokenizers.specs import Pix2SeqConfig
        >>> from fusionkit.geometry import Point
        >>> Pix2Seq(Pix2SeqConfig()).encode(Point(640, 0), Size(640, 480))
        '<bin_0><bin_999>'
    """

    token = re.compile(r"<bin_(0|[1-9][0-9]{0,4})>")
    pattern = piece_pattern(r"<bin_(?:0|[1-9][0-9]{0,4})>")
    stray = re.compile(r"<bin_[0-9]*+>?")

    def steps(self, size: Size) -> tuple[int, int]:
        return self.config.bins - 1, self.config.bins - 1

    def spell(self, number: int) -> str:
        return f"<bin_{number}>"
