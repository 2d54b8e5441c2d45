"""Qwen-VL's boxes: numbers 0 to 999 in text between box tags. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterator

from fusionkit.blocks.box_tokenizers.frame import Item, Items, half_up
from fusionkit.blocks.box_tokenizers.tagged import NUMBER, REF, TaggedFormat
from fusionkit.geometry import Size

_CORNER = rf"\(\s*+{NUMBER}\s*+,\s*+{NUMBER}\s*+\)"
_BOX = rf"<box>\s*+{_CORNER}(?:\s*+,\s*+{_CORNER})?+\s*+</box>"


class QwenVl(TaggedFormat):
    """`<ref>cat</ref><box>(x0,y0),(x1,y1)</box>`, more boxes of the same label following.

    The official evaluation decodes k W / 999; the training encoder is not public, so numbers are its inverse,
    floor(999 x / W + 1/2). Points are not in the format: `<box>(x,y)</box>`. Error: W / 1998 pixels.

    Example:
        >>> from fusionkit.blocks.box_tokenizers.specs import QwenVlConfig
        >>> from fusionkit.geometry import Box
        >>> QwenVl(QwenVlConfig()).encode(Box(0, 0, 320, 480, "cat"), Size(640, 480))
        '<ref>cat</ref><box>(0,0),(500,999)</box>'
    """

    pattern = re.compile(rf"{REF}{_BOX}(?:\s*+{_BOX})*+")

    def steps(self, size: Size) -> tuple[int, int]:
        return 999, 999

    def rounded(self, above: int, below: int) -> int:
        return half_up(above, below)

    def write(self, group: Items, label: str, size: Size) -> str:
        return self.ref(label) + "".join(f"<box>{_corners(self.numbers(item, size))}</box>" for item in group)

    def read(self, match: re.Match[str], size: Size) -> Iterator[Item]:
        for piece in re.findall(_BOX, match.group()):
            yield self.item([int(number) for number in re.findall(NUMBER, piece)], size, (match[1] or "").strip())


def _corners(numbers: tuple[int, ...]) -> str:
    return ",".join(f"({x},{y})" for x, y in zip(numbers[::2], numbers[1::2], strict=True))
