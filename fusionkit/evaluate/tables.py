"""The same table as CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

Row = Mapping[str, object]


def columns_of(rows: Sequence[Row]) -> list[str]:
    """The columns of all rows, in the order they first appear; one that is empty everywhere is left out."""
    found = dict.fromkeys(key for row in rows for key in row)
    return [key for key in found if any(row.get(key) is not None for row in rows)]


def write_tables(folder: Path, stem: str, rows: Sequence[Row]) -> None:
    """Write `STEM.csv` (numbers in full), `STEM.md` and `STEM.tex` (rounded)."""
    for suffix, make in (("csv", as_csv), ("md", as_markdown), ("tex", as_latex)):
        (folder / f"{stem}.{suffix}").write_text(make(rows), encoding="utf-8")


def as_csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns_of(rows), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_markdown(rows: Sequence[Row]) -> str:
    columns = columns_of(rows)
    lines = [columns, ["---:" if _numeric(rows, column) else "---" for column in columns]]
    lines += [[cell(row.get(column)).replace("|", "\\|") for column in columns] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def as_latex(rows: Sequence[Row]) -> str:
    """A `tabular` with booktabs rules (`\\usepackage{booktabs}`)."""
    columns = columns_of(rows)
    aligned = "".join("r" if _numeric(rows, column) else "l" for column in columns)
    lines = [
        f"\\begin{{tabular}}{{{aligned}}}",
        "\\toprule",
        " & ".join(map(_escaped, columns)) + r" \\",
        "\\midrule",
        *(" & ".join(_escaped(cell(row.get(column))) for column in columns) + r" \\" for row in rows),
        "\\bottomrule",
        "\\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def cell(value: object) -> str:
    """A value of a table as a person reads it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def _numeric(rows: Sequence[Row], column: str) -> bool:
    values = [row.get(column) for row in rows if row.get(column) is not None]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


_LATEX = {**{sign: f"\\{sign}" for sign in "&%$#_{}"}, "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}  # fmt: skip


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text)
