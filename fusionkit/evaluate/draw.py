"""Pictures a person looks at: answers drawn over the picture they are about."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from fusionkit.geometry import Box, Point
from fusionkit.sample import Prediction, Turn

ANSWER = (255, 64, 64)
TRUTH = (24, 178, 92)
INK = (28, 30, 33)
CASING = (255, 255, 255)
"""Drawn under every mark, a little wider: a red box is seen on a red thing too."""
SMALLEST_SIDE = 384
"""Pictures with a shorter side are enlarged by a whole factor, so that lines are thinner than what they show."""

_Colour = tuple[int, int, int]


def annotate(image: Image.Image, question: str, prediction: Prediction, truth: Turn | None = None) -> Image.Image:
    """The picture with predicted boxes and points (red), the truth if known (green, dashed), and a caption below.

    Coordinates are pixels of `image`; the result is enlarged when the picture is small.
    """
    scale = max(1, -(-SMALLEST_SIDE // min(image.size)))
    canvas = image.convert("RGB").resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(canvas)
    line = max(3, round(min(canvas.size) / 130))
    for box in prediction.boxes:
        x0, y0, x1, y1 = _scaled(box, scale)
        draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=CASING, width=line + 2)
        draw.rectangle((x0, y0, x1, y1), outline=ANSWER, width=line)
    caption = [(question, INK), (describe(prediction), ANSWER)]
    if truth is not None:
        # The dashes go over the answer: where both are the same, red shows between them.
        for box in truth.boxes:
            _dashed_box(draw, box, scale, line, solid=not prediction.boxes)
        for point in truth.points:
            _cross(draw, point, scale, line)
        caption.append((_truth_in_words(truth, prediction), TRUTH))
    for point in prediction.points:
        x, y, radius = point.x * scale, point.y * scale, 4 * line
        _ring(draw, x, y, radius + 1, line + 2, CASING)
        _ring(draw, x, y, radius, line, ANSWER)
        draw.ellipse((x - line - 1, y - line - 1, x + line + 1, y + line + 1), fill=CASING)
        draw.ellipse((x - line, y - line, x + line, y + line), fill=ANSWER)
    return _captioned(canvas, caption)


def describe(prediction: Prediction) -> str:
    """An answer in words: its text, or its boxes and points in pixels when it has any."""
    pieces = [f"box ({box.x0:.0f}, {box.y0:.0f}, {box.x1:.0f}, {box.y1:.0f})" for box in prediction.boxes]
    pieces += [f"point ({point.x:.0f}, {point.y:.0f})" for point in prediction.points]
    pieces += [f"malformed: {text}" for text in prediction.malformed]
    return ", ".join(pieces) or prediction.text or "(no answer)"


def _truth_in_words(truth: Turn, prediction: Prediction) -> str:
    known = describe(Prediction(truth.text, truth.boxes, truth.points))
    if len(truth.boxes) == len(prediction.boxes) == 1:
        return f"{known}, IoU {truth.boxes[0].iou(prediction.boxes[0]):.2f}"
    return known


def sheet(pictures: Sequence[Image.Image], columns: int = 3, gap: int = 12, widest: int | None = None) -> Image.Image:
    """Several pictures on one page, row by row; those wider than `widest` pixels are scaled down to it."""
    if widest is not None:
        pictures = [
            each.resize((widest, max(1, each.height * widest // each.width)), Image.Resampling.LANCZOS)
            if each.width > widest
            else each
            for each in pictures
        ]
    columns = min(columns, len(pictures))
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    width = max(sum(picture.width for picture in row) + gap * (len(row) + 1) for row in rows)
    height = sum(max(picture.height for picture in row) + gap for row in rows) + gap
    page = Image.new("RGB", (width, height), "white")
    y = gap
    for row in rows:
        x = gap
        for picture in row:
            page.paste(picture, (x, y))
            x += picture.width + gap
        y += max(picture.height for picture in row) + gap
    return page


def _scaled(box: Box, scale: int) -> tuple[float, float, float, float]:
    x0, x1 = sorted((box.x0 * scale, box.x1 * scale))
    y0, y1 = sorted((box.y0 * scale, box.y1 * scale))
    return (x0, y0, x1, y1)


def _dashed_box(draw: ImageDraw.ImageDraw, box: Box, scale: int, line: int, *, solid: bool) -> None:
    """Green dashes; on a line of white if `solid`, else each dash has its own edge and lets the answer be seen."""
    x0, y0, x1, y1 = _scaled(box, scale)
    if solid:
        draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=CASING, width=line + 2)
    x1, y1 = x1 - line + 1, y1 - line + 1
    length = 3 * line
    for y in (y0, y1):
        for x in _starts(x0, x1 + line, length):
            _bar(draw, x, y, length, line)
    for x in (x0, x1):
        for y in _starts(y0, y1 + line, length):
            _bar(draw, x, y, line, length)


def _starts(low: float, high: float, length: int) -> list[float]:
    """Where dashes of a length begin so that one stands at both ends of a side and the gaps are as long."""
    gaps = max(1, round((high - low - length) / (2 * length)))
    return [low + (high - length - low) * number / gaps for number in range(gaps + 1)]


def _bar(draw: ImageDraw.ImageDraw, x: float, y: float, width: float, height: float) -> None:
    draw.rectangle((x - 1, y - 1, x + width, y + height), fill=CASING)
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=TRUTH)


def _cross(draw: ImageDraw.ImageDraw, point: Point, scale: int, line: int) -> None:
    x, y, arm = point.x * scale, point.y * scale, 5 * line
    for colour, extra in ((CASING, 1), (TRUTH, 0)):
        half = line / 2 + extra
        draw.rectangle((x - arm - extra, y - half, x + arm + extra, y + half), fill=colour)
        draw.rectangle((x - half, y - arm - extra, x + half, y + arm + extra), fill=colour)


def _ring(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, width: int, colour: _Colour) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=width)


def _captioned(picture: Image.Image, lines: Sequence[tuple[str, _Colour]]) -> Image.Image:
    """The picture with lines of text below; a line that is not in ink has a square of its colour before it."""
    size = max(15, round(picture.width / 24))
    font = ImageFont.load_default(size=size)
    step, margin, chip = round(size * 1.4), round(size * 0.6), round(size * 0.62)
    probe = ImageDraw.Draw(picture)
    rows: list[tuple[str, int, _Colour | None]] = []
    for text, colour in lines:
        indent = 0 if colour == INK else chip + margin // 2
        for number, piece in enumerate(_wrap(probe, text, font, picture.width - 2 * margin - indent)):
            rows.append((piece, indent, colour if indent and number == 0 else None))
    page = Image.new("RGB", (picture.width, picture.height + step * len(rows) + margin + margin // 2), "white")
    page.paste(picture, (0, 0))
    draw = ImageDraw.Draw(page)
    for number, (text, indent, mark) in enumerate(rows):
        y = picture.height + margin + number * step
        if mark is not None:
            top = y + round((size - chip) / 2) + 1
            draw.rectangle((margin, top, margin + chip - 1, top + chip - 1), fill=mark)
        draw.text((margin + indent, y), text, fill=INK, font=font)
    return page


def _wrap(
    draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> list[str]:
    """Words on lines no wider than the page; a word that is wider by itself is broken."""
    lines: list[str] = []
    for word in text.split():
        if lines and draw.textlength(f"{lines[-1]} {word}", font=font) <= width:
            lines[-1] += f" {word}"
            continue
        lines.append("")
        for character in word:
            if lines[-1] and draw.textlength(lines[-1] + character, font=font) > width:
                lines.append("")
            lines[-1] += character
    return lines
