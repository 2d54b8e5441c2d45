"""Pictures in rows and columns with headings, as PNG and as SVG (its text is text, its pictures are inside)."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

INK, QUIET = (28, 30, 33), (85, 89, 95)
GAP, HEAD, TITLE = 8, 24, 34


@dataclass(frozen=True, slots=True)
class Row:
    """A heading and its pictures, each under its own heading (`names`; empty ones are left out)."""

    title: str
    names: Sequence[str]
    pictures: Sequence[Image.Image]


@dataclass(frozen=True, slots=True)
class Sheet:
    """Rows of pictures of one size each row."""

    title: str
    rows: Sequence[Row]

    @property
    def size(self) -> tuple[int, int]:
        width = max(sum(picture.width + GAP for picture in row.pictures) + GAP for row in self.rows)
        text = max((_width(text, big) for _, _, text, big in self._texts()), default=0)
        height = TITLE + sum(HEAD + self._head(row) + _tallest(row) + GAP for row in self.rows) + GAP
        return max(width, text + 2 * GAP), height

    def png(self) -> bytes:
        """The sheet as a picture."""
        canvas = Image.new("RGB", self.size, "white")
        draw = ImageDraw.Draw(canvas)
        for x, y, text, big in self._texts():
            draw.text((x, y), text, fill=INK if big else QUIET, font=_font(big))
        for x, y, picture in self._pictures():
            canvas.paste(picture, (x, y))
        return _png(canvas)

    def svg(self) -> str:
        """The sheet as SVG."""
        width, height = self.size
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
            f'font-family="sans-serif"><rect width="{width}" height="{height}" fill="white"/>'
        ]
        for x, y, text, big in self._texts():
            size, fill = (16, "#1c1e21") if big else (13, "#55595f")
            parts.append(f'<text x="{x}" y="{y + size}" font-size="{size}" fill="{fill}">{html.escape(text)}</text>')
        for x, y, picture in self._pictures():
            data = base64.b64encode(_png(picture)).decode("ascii")
            parts.append(
                f'<image x="{x}" y="{y}" width="{picture.width}" height="{picture.height}" '
                f'href="data:image/png;base64,{data}"/>'
            )
        return "\n".join([*parts, "</svg>\n"])

    def _head(self, row: Row) -> int:
        return HEAD if any(row.names) else 0

    def _texts(self) -> Iterator[tuple[int, int, str, bool]]:
        """(x, y, text, whether it is the title)."""
        yield GAP, 8, self.title, True
        y = TITLE
        for row in self.rows:
            yield GAP, y + 4, row.title, False
            x = GAP
            for name, picture in zip(row.names, row.pictures, strict=True):
                if name:
                    yield x, y + HEAD + 4, name, False
                x += picture.width + GAP
            y += HEAD + self._head(row) + _tallest(row) + GAP

    def _pictures(self) -> Iterator[tuple[int, int, Image.Image]]:
        y = TITLE
        for row in self.rows:
            x, top = GAP, y + HEAD + self._head(row)
            for picture in row.pictures:
                yield x, top, picture
                x += picture.width + GAP
            y = top + _tallest(row) + GAP


def _tallest(row: Row) -> int:
    return max(picture.height for picture in row.pictures)


def _font(big: bool) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(16 if big else 13)


def _width(text: str, big: bool) -> int:
    return round(_font(big).getlength(text))


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
