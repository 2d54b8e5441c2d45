"""A self-contained HTML page of annotated pictures: no request leaves it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #1c1e21; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; }
figure { margin: 0; border: 1px solid #ddd; border-radius: 6px; overflow: hidden; background: #fff; }
img { width: 100%; display: block; }
table { border-collapse: collapse; } td, th { padding: .25rem .9rem .25rem 0; text-align: left; border-bottom: 1px solid #eee; }
.legend b { padding: 0 .3em; border-radius: 3px; color: #fff; } .answer { background: #ff4040; } .truth { background: #2fae66; }
pre { background: #f6f7f9; padding: .8rem; border-radius: 6px; overflow-x: auto; }
"""


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, a sentence, and pictures or a table of numbers under it."""

    title: str
    text: str = ""
    pictures: Sequence[Image.Image] = ()
    table: Sequence[Mapping[str, object]] = ()
    code: str = ""


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The HTML text; pictures are embedded as PNG."""
    body = "\n".join(_section(section) for section in sections)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f"<body><h1>{html.escape(title)}</h1><p>{html.escape(lead)}</p>"
        '<p class="legend"><b class="answer">red</b> the model\'s answer &nbsp; <b class="truth">green</b> the truth, where it is known</p>\n'
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
        parts.append(f"<table><tr>{head}</tr>{rows}</table>")
    if section.code:
        parts.append(f"<pre>{html.escape(section.code)}</pre>")
    if section.pictures:
        figures = "".join(
            f'<figure><img alt="annotated picture" src="{_data_url(picture)}"></figure>' for picture in section.pictures
        )
        parts.append(f'<div class="cards">{figures}</div>')
    return "\n".join(parts)


def _data_url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
