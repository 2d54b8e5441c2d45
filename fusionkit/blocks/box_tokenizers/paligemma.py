"""PaliGemma's location tokens: y x y x in 1024 steps. Torch-free."""

from __future__ import annotations

import re

from fusionkit.blocks.box_tokenizers.yx_tokens import YxTokens, piece_pattern
from fusionkit.geometry import Size


class PaliGemma(YxTokens):
    """`<loc0000><loc0123><loc0456><loc1023> cat ; ...` in the order y0 x0 y1 x1.

    A number is round-half-even(1023 x / W), decoded k W / 1023 (dividing by 1024, as is often done, triples the
    error). Error: W / 2046 pixels.

    Example:
        >>> from fusionkit.blocks.box_tokenizers.specs import PaliGemmaConfig
        >>> from fusionkit.geometry import Box
        >>> PaliGemma(PaliGemmaConfig()).encode(Box(0, 240, 640, 480, "cat"), Size(640, 480))
        '<loc0512><loc0000><loc1023><loc1023> cat'
    """

    token = re.compile(r"<loc([0-9]{4})>")
    pattern = piece_pattern(r"<loc[0-9]{4}>")
    stray = re.compile(r"<loc[0-9]*+>?")

    def steps(self, size: Size) -> tuple[int, int]:
        return 1023, 1023

    def spell(self, number: int) -> str:
        return f"<loc{number:04d}>"
