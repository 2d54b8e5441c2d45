"""Many samples on one page: pictures with their boxes and points drawn, and the first questions below."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from fusionkit.errors import DataError
from fusionkit.sample import Sample, Turn

COLOURS = ("#ff4040", "#30c060", "#3080ff", "#ffb000", "#c040ff", "#00b8c8")
"""One for each turn in order, then again from the first."""

_CELL = 240  # pixels given to a picture, in both directions
_GAP = 14
_COLUMNS = 4
_TURNS_SHOWN = 3
_LINE = 17


def contact_sheet(samples: Sequence[Sample]) -> Image.Image:
    """Up to four pictures a row, shrunk or enlarged to one size; a caption has the colour of what it asked for.

    Raises DataError when there is nothing to draw or a picture cannot be opened.
    """
    if not samples:
        raise DataError("no sample with a picture to draw")
    cells = [_cell(sample) for sample in samples]
    columns = min(_COLUMNS, len(cells))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    width = columns * (_CELL + _GAP) + _GAP
    page = Image.new("RGB", (width, sum(max(c.height for c in row) + _GAP for row in rows) + _GAP), "white")
    y = _GAP
    for row in rows:
        for column, cell in enumerate(row):
            page.paste(cell, (_GAP + column * (_CELL + _GAP), y))
        y += max(cell.height for cell in row) + _GAP
    return page


def _cell(sample: Sample) -> Image.Image:
    if sample.open_image is None:
        raise DataError(f"{sample.provenance}: no picture to draw")
    picture = sample.open_image()
    scale = _CELL / max(picture.size)
    kernel = Image.Resampling.NEAREST if scale > 2 else Image.Resampling.BICUBIC
    picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), kernel)
    draw = ImageDraw.Draw(picture)
    for number, turn in enumerate(sample.turns):
        _mark(draw, turn, scale, COLOURS[number % len(COLOURS)])
    captions = [(f"row {sample.provenance.row}", "#808080")]
    captions += [
        (
            " – ".join(filter(None, (turn.question, turn.text))),
            COLOURS[number % len(COLOURS)] if turn.boxes or turn.points else "#000000",
        )
        for number, turn in enumerate(sample.turns[:_TURNS_SHOWN])
    ]
    if len(sample.turns) > _TURNS_SHOWN:
        captions.append((f"and {len(sample.turns) - _TURNS_SHOWN} more", "#808080"))
    cell = Image.new("RGB", (_CELL, picture.height + 4 + _LINE * len(captions)), "white")
    cell.paste(picture, (0, 0))
    text = ImageDraw.Draw(cell)
    font = ImageFont.load_default(size=13)
    for number, (caption, colour) in enumerate(captions):
        text.text((0, picture.height + 4 + number * _LINE), _fitted(text, caption, font), fill=colour, font=font)
    return cell


def _mark(draw: ImageDraw.ImageDraw, turn: Turn, scale: float, colour: str) -> None:
    for box in turn.boxes:
        x0, y0, x1, y1 = (value * scale for value in (box.x0, box.y0, box.x1, box.y1))
        draw.rectangle((x0 - 1, y0 - 1, x1, y1), outline="white")  # so that it is seen on its own colour too
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=colour, width=2)
    for point in turn.points:
        x, y = point.x * scale, point.y * scale
        draw.ellipse((x - 6, y - 6, x + 6, y + 6), outline="white", width=3)
        draw.ellipse((x - 5, y - 5, x + 5, y + 5), outline=colour, width=2)


def _fitted(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text, cut with dots where the cell ends."""
    text = " ".join(text.split())[:200]
    while text and draw.textlength(text, font=font) > _CELL:
        text = text[:-2].rstrip() + "…"
    return text
