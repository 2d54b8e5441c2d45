"""InternVL's boxes: thousandths in nested brackets between box tags. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterator

from fusionkit.blocks.box_tokenizers.frame import Item, Items
from fusionkit.blocks.box_tokenizers.tagged import NUMBER, REF, TaggedFormat
from fusionkit.geometry import Size

_INNER = rf"\[\s*+{NUMBER}(?:\s*+,\s*+{NUMBER})*+\s*+\]"


class InternVl(TaggedFormat):
    """`<ref>cats</ref><box>[[x0, y0, x1, y1], [x0, y0, x1, y1]]</box>`.

    A number is round-half-even(1000 x / W), 0 to 1000, decoded k W / 1000, always: small numbers are not taken for
    shares of 1. Points are not in the format: `<box>[[x, y]]</box>`. Error: W / 2000 pixels.

    Example:
        >>> from fusionkit.blocks.box_tokenizers.specs import InternVlConfig
        >>> from fusionkit.geometry import Box
        >>> InternVl(InternVlConfig()).encode(Box(0, 0, 320, 480, "cat"), Size(640, 480))
        '<ref>cat</ref><box>[[0, 0, 500, 1000]]</box>'
    """

    pattern = re.compile(rf"{REF}<box>\s*+\[\s*+{_INNER}(?:\s*+,\s*+{_INNER})*+\s*+\]\s*+</box>")

    def steps(self, size: Size) -> tuple[int, int]:
        return 1000, 1000

    def write(self, group: Items, label: str, size: Size) -> str:
        return f"{self.ref(label)}<box>{[list(self.numbers(item, size)) for item in group]}</box>"

    def read(self, match: re.Match[str], size: Size) -> Iterator[Item]:
        for piece in re.findall(_INNER, match.group()):
            yield self.item([int(number) for number in re.findall(NUMBER, piece)], size, (match[1] or "").strip())
