"""Pictures a person looks at: answers drawn over the picture they are about."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from fusionkit.geometry import Box, Point
from fusionkit.sample import Prediction, Turn

ANSWER = (255, 64, 64)
TRUTH = (64, 220, 120)
SMALLEST_SIDE = 384
"""Pictures with a shorter side are enlarged by a whole factor, so that lines are thinner than what they show."""


def annotate(image: Image.Image, question: str, prediction: Prediction, truth: Turn | None = None) -> Image.Image:
    """The picture with predicted boxes and points (red), the truth if known (green, dashed), and a caption below.

    Coordinates are pixels of `image`; the result is enlarged when the picture is small.
    """
    scale = max(1, -(-SMALLEST_SIDE // min(image.size)))
    canvas = image.convert("RGB").resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(canvas)
    line = max(2, round(min(canvas.size) / 160))
    if truth is not None:
        for box in truth.boxes:
            _dashed_box(draw, box, scale, line)
        for point in truth.points:
            _cross(draw, point, scale, 4 * line, TRUTH, line)
    for box in prediction.boxes:
        draw.rectangle(_scaled(box, scale), outline=ANSWER, width=line)
    for point in prediction.points:
        x, y, radius = point.x * scale, point.y * scale, 4 * line
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=ANSWER, width=line)
        draw.ellipse((x - line, y - line, x + line, y + line), fill=ANSWER)
    return _captioned(canvas, [question, describe(prediction)])


def describe(prediction: Prediction) -> str:
    """An answer in words: its text, or its boxes and points in pixels when it has any."""
    pieces = [f"box ({box.x0:.0f}, {box.y0:.0f}, {box.x1:.0f}, {box.y1:.0f})" for box in prediction.boxes]
    pieces += [f"point ({point.x:.0f}, {point.y:.0f})" for point in prediction.points]
    pieces += [f"malformed: {text}" for text in prediction.malformed]
    return ", ".join(pieces) or prediction.text or "(no answer)"


def sheet(pictures: Sequence[Image.Image], columns: int = 3, gap: int = 12) -> Image.Image:
    """Several pictures on one page, row by row."""
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


def _dashed_box(draw: ImageDraw.ImageDraw, box: Box, scale: int, line: int) -> None:
    x0, y0, x1, y1 = _scaled(box, scale)
    for start, end in (((x0, y0), (x1, y0)), ((x1, y0), (x1, y1)), ((x1, y1), (x0, y1)), ((x0, y1), (x0, y0))):
        length = max(abs(end[0] - start[0]), abs(end[1] - start[1]))
        dashes = max(1, round(length / (6 * line)))
        for dash in range(dashes):
            a, b = dash / dashes, (dash + 0.5) / dashes
            draw.line(
                [(start[0] + (end[0] - start[0]) * t, start[1] + (end[1] - start[1]) * t) for t in (a, b)],
                fill=TRUTH,
                width=line,
            )


def _cross(
    draw: ImageDraw.ImageDraw, point: Point, scale: int, arm: int, colour: tuple[int, int, int], line: int
) -> None:
    x, y = point.x * scale, point.y * scale
    draw.line([(x - arm, y), (x + arm, y)], fill=colour, width=line)
    draw.line([(x, y - arm), (x, y + arm)], fill=colour, width=line)


def _captioned(picture: Image.Image, lines: Sequence[str]) -> Image.Image:
    size = max(14, round(picture.width / 26))
    font = ImageFont.load_default(size=size)
    probe = ImageDraw.Draw(picture)
    wrapped = [piece for line in lines for piece in _wrap(probe, line, font, picture.width - 16)]
    step = round(size * 1.35)
    page = Image.new("RGB", (picture.width, picture.height + step * len(wrapped) + 14), "white")
    page.paste(picture, (0, 0))
    draw = ImageDraw.Draw(page)
    for number, text in enumerate(wrapped):
        draw.text((8, picture.height + 7 + number * step), text, fill="black", font=font)
    return page


def _wrap(
    draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and draw.textlength(f"{lines[-1]} {word}", font=font) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
