"""Draw a picture's crops, and a dot for every visual token that is kept, coloured by its crop."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor
from typing import TYPE_CHECKING

from fusionkit.geometry import Box, TokenSpec
from fusionkit.plugin import TokenLayout

if TYPE_CHECKING:
    from PIL.Image import Image

COLOURS = (
    "#2563eb", "#dc2626", "#16a34a", "#d97706", "#9333ea", "#0891b2", "#db2777", "#65a30d", "#4f46e5", "#b45309",
    "#0d9488", "#be123c", "#7c3aed",
)  # fmt: skip
BORDER = 16
SHORTEST_SIDE, LONGEST_SIDE = 640, 1600
"""Pictures are scaled to at least the one and at most the other, so that lines and numbers can be read."""


def draw(image: Image, regions: Sequence[Box], layout: TokenLayout, visual: TokenSpec) -> Image:
    """The picture with its crops; a crop that sees all of it while others see parts gets no dots."""
    from PIL import Image as Images
    from PIL import ImageDraw, ImageFont

    scale = max(1.0, SHORTEST_SIDE / min(image.size))
    scale = min(scale, LONGEST_SIDE / max(image.size))
    left, top, right, bottom = _extent(image, regions)
    width, height = (ceil((right - left) * scale) + 2 * BORDER, ceil((bottom - top) * scale) + 2 * BORDER)
    canvas = Images.new("RGB", (width, height), "#f1f5f9")
    shown = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    pale = Images.blend(shown, Images.new("RGB", shown.size, "white"), 0.25)
    canvas.paste(pale, (round(-left * scale) + BORDER, round(-top * scale) + BORDER))
    pen = ImageDraw.Draw(canvas)

    def place(x: float, y: float) -> tuple[float, float]:
        return ((x - left) * scale + BORDER, (y - top) * scale + BORDER)

    several = len(regions) > 1
    dots = _token_centres(regions, layout, visual)
    for crop, centres in dots.items():
        if several and _is_whole(regions[crop], image):
            continue
        for x, y in centres:
            centre_x, centre_y = place(x, y)
            pen.ellipse((centre_x - 4, centre_y - 4, centre_x + 4, centre_y + 4), fill=_colour(crop), outline="white")
    font = ImageFont.load_default(20)
    for crop, region in enumerate(regions):
        # Crops share borders: each is drawn a little further in, so that all can be seen.
        inset = 2 * (crop % 4)
        (x0, y0), (x1, y1) = place(region.x0, region.y0), place(region.x1, region.y1)
        x0, y0, x1, y1 = x0 + inset, y0 + inset, x1 - inset - 1, y1 - inset - 1
        pen.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), outline=_colour(crop), width=3)
        # The view of the whole has its number in another corner than the first tile.
        corner = (x1 - 30, y0 + 6) if several and _is_whole(region, image) else (x0 + 8, y0 + 6)
        pen.text(corner, str(crop), fill=_colour(crop), font=font, stroke_width=3, stroke_fill="white")
    return canvas


def _extent(image: Image, regions: Sequence[Box]) -> tuple[int, int, int, int]:
    """The smallest box of whole px that holds the picture and all regions; padded crops reach outside the picture."""
    return (
        min(0, *(floor(region.x0) for region in regions), 0),
        min(0, *(floor(region.y0) for region in regions), 0),
        max(image.width, *(ceil(region.x1) for region in regions)),
        max(image.height, *(ceil(region.y1) for region in regions)),
    )


def _token_centres(
    regions: Sequence[Box], layout: TokenLayout, visual: TokenSpec
) -> dict[int, list[tuple[float, float]]]:
    """Where the kept tokens of each crop lie in the picture, px."""
    centres = list(visual.frame.cell_centres(visual.grid))
    found: dict[int, list[tuple[float, float]]] = {}
    for patch in layout.patches:
        crop, token = divmod(patch, visual.tokens)
        cell = token // visual.copies if visual.interleaved else token % visual.grid.tokens
        y, x = centres[cell]
        region = regions[crop]
        place = (region.x0 + x * (region.x1 - region.x0), region.y0 + y * (region.y1 - region.y0))
        found.setdefault(crop, []).append(place)
    return found


def _is_whole(region: Box, image: Image) -> bool:
    return region.x0 <= 0 and region.y0 <= 0 and region.x1 >= image.width and region.y1 >= image.height


def _colour(crop: int) -> str:
    return COLOURS[crop % len(COLOURS)]
