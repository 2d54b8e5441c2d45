"""JSON in thousandths of the picture's sides, as Qwen3-VL and others write it. Torch-free."""

from __future__ import annotations

from fusionkit.blocks.box_tokenizers.json_format import JsonFormat
from fusionkit.geometry import Size


class Norm1000(JsonFormat):
    """`{"bbox_2d": [x0, y0, x1, y1], "label": "cat"}`: round-half-even(1000 x / W), 0 to 1000, decoded k W / 1000.

    Numbers over 1000 are malformed: they come from another format. Error: W / 2000 pixels.

    Example:
        >>> from fusionkit.blocks.box_tokenizers.specs import Norm1000Config
        >>> from fusionkit.geometry import Point
        >>> Norm1000(Norm1000Config()).encode(Point(320, 120, "eye"), Size(640, 480))
        '{"point_2d": [500, 250], "label": "eye"}'
    """

    def steps(self, size: Size) -> tuple[int, int]:
        return 1000, 1000
