"""A self-contained HTML page of annotated pictures: no request leaves it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 84rem; padding: 0 1rem; color: #1c1e21; }
h1 { font-size: 1.6rem; margin-bottom: .3rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
.lead { color: #55595f; margin: 0 0 .8rem; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(18rem, 100%), 1fr)); gap: 1rem; align-items: start; }
figure { margin: 0; border: 1px solid #dcdfe3; border-radius: 8px; overflow: hidden; background: #fff; }
img { width: 100%; display: block; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .25rem 1.2rem .25rem 0; text-align: left; border-bottom: 1px solid #e9ebee; white-space: nowrap; }
th { color: #55595f; font-weight: 600; }
.legend b { padding: .05em .4em; border-radius: 4px; color: #fff; margin-right: .2em; } .legend span { margin-right: 1.4em; }
.answer { background: #e03131; } .truth { background: #138a47; }
pre { background: #f6f7f9; padding: .8rem; border-radius: 6px; overflow-x: auto; }
"""


class Picture(NamedTuple):
    """A picture and what it shows in words, for those who do not see it."""

    image: Image.Image
    alt: str


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, a sentence, and pictures or a table of numbers under it."""

    title: str
    text: str = ""
    pictures: Sequence[Picture] = ()
    table: Sequence[Mapping[str, object]] = ()
    code: str = ""


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The HTML text; pictures are embedded as PNG."""
    body = "\n".join(_section(section) for section in sections)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f'<body><h1>{html.escape(title)}</h1><p class="lead">{html.escape(lead)}</p>'
        '<p class="legend"><span><b class="answer">red</b> the model\'s answer</span>'
        '<span><b class="truth">green, dashed</b> the truth, where it is known</span></p>\n'
        f"{body}\n</body></html>\n"
    )


def _section(section: Section) -> str:
    parts = [f"<h2>{html.escape(section.title)}</h2>"]
    if section.text:
        parts.append(f"<p>{html.escape(section.text)}</p>")
    if section.table:
        columns = list(section.table[0])
        head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(str(row[column]))}</td>" for column in columns) + "</tr>"
            for row in section.table
        )
        parts.append(f'<div class="wide"><table><tr>{head}</tr>{rows}</table></div>')
    if section.code:
        parts.append(f"<pre>{html.escape(section.code)}</pre>")
    if section.pictures:
        figures = "".join(
            f'<figure><img alt="{html.escape(alt)}" src="{_data_url(image)}"></figure>'
            for image, alt in section.pictures
        )
        parts.append(f'<div class="cards">{figures}</div>')
    return "\n".join(parts)


def _data_url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
