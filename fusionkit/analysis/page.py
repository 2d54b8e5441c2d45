"""The HTML report: one file, no request leaves it; pictures are inside, tables sort when a heading is clicked."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass

from fusionkit.analysis.outcome import Table

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem; color: #1c1e21; }
h1 { font-size: 1.6rem; margin-bottom: .3rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
.lead { color: #55595f; margin: 0 0 .8rem; overflow-wrap: anywhere; }
figure { margin: 0 0 1.4rem; } figcaption { color: #55595f; font-size: .9rem; margin-top: .3rem; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; border: 1px solid #dcdfe3; border-radius: 8px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin-bottom: 1rem; }
td, th { padding: .25rem 1.2rem .25rem 0; text-align: left; border-bottom: 1px solid #e9ebee; white-space: nowrap; }
th button { all: unset; cursor: pointer; color: #55595f; font-weight: 600; }
th button:focus-visible { outline: 2px solid #2563eb; }
th[aria-sort=ascending] button::after { content: " \\25B2"; } th[aria-sort=descending] button::after { content: " \\25BC"; }
pre { background: #f6f7f9; padding: .8rem; border-radius: 6px; overflow-x: auto; }
"""

_SCRIPT = """
for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => {
  const head = button.parentElement, table = head.closest("table"), place = head.cellIndex;
  const up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = row => row.cells[place].textContent;
  const rows = [...table.tBodies[0].rows].sort((a, b) => {
    const [x, y] = [key(a), key(b)], [m, n] = [parseFloat(x), parseFloat(y)];
    const order = isNaN(m) || isNaN(n) ? x.localeCompare(y) : m - n;
    return up ? order : -order;
  });
  table.tBodies[0].append(...rows);
});
"""


@dataclass(frozen=True, slots=True)
class Figure:
    """A PNG, and what it shows in words."""

    png: bytes
    alt: str


@dataclass(frozen=True, slots=True)
class Section:
    """A heading; under it, in this order, paragraphs, figures, tables and code."""

    title: str
    paragraphs: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    code: str = ""


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The HTML text."""
    body = "\n".join(_section(section) for section in sections)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{_STYLE}</style></head>\n"
        f'<body><h1>{html.escape(title)}</h1><p class="lead">{html.escape(lead)}</p>\n{body}\n'
        f"<script>{_SCRIPT}</script></body></html>\n"
    )


def _section(section: Section) -> str:
    parts = [f"<h2>{html.escape(section.title)}</h2>"]
    parts += [f"<p>{html.escape(text)}</p>" for text in section.paragraphs]
    for figure in section.figures:
        data = base64.b64encode(figure.png).decode("ascii")
        caption = html.escape(figure.alt)
        parts.append(
            f'<figure><img alt="{caption}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'
        )
    parts += [_table(table) for table in section.tables if table.rows]
    if section.code:
        parts.append(f"<pre>{html.escape(section.code)}</pre>")
    return "\n".join(parts)


def _table(table: Table) -> str:
    columns = list(table.rows[0])
    head = "".join(f'<th scope="col"><button type="button">{html.escape(name)}</button></th>' for name in columns)
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(cell(row[name]))}</td>" for name in columns) + "</tr>" for row in table.rows
    )
    title = f"<p><strong>{html.escape(table.title)}</strong></p>" if table.title else ""
    return f'{title}<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def cell(value: object) -> str:
    """A value of a table as text: four digits of a number, nothing for what is not there."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
