"""What analyses that end in sheets of pictures share: which layers they show, and their files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fusionkit.analysis.outcome import Frame, Outcome, Table
from fusionkit.analysis.overlay import Picture, fit
from fusionkit.analysis.page import Figure, Section, page
from fusionkit.analysis.partial import Partial
from fusionkit.analysis.photos import Photo
from fusionkit.analysis.sheet import Row, Sheet
from fusionkit.analysis.stream import parse_layers
from fusionkit.analysis.subjects import Subject
from fusionkit.errors import UsageError

SHEETS = "sheets"


def representative(text: str | None, subject: Subject, *, first: int = 0) -> tuple[int, ...]:
    """The layers asked for; by default four: early, early-mid, mid-late and final, as in the paper's Figure 2.

    Raises UsageError for a layer below `first`.
    """
    if text is None:
        quarters = (round(subject.kept * part / 4) for part in (1, 2, 3, 4))
        return tuple(sorted({max(first, layer) for layer in quarters}))
    layers = parse_layers(text, subject)
    if layers[0] < first:
        raise UsageError(f"--layers {text}: layer 0 is what goes into block 1 and has no attention; start at {first}")
    return layers


def encoder_sheets(
    subjects: Sequence[Subject],
    photos: Sequence[Photo],
    results: Mapping[str, Partial],
    rows: Callable[[Subject, Picture, Any], Iterable[Row]],
) -> Iterator[Sheet]:
    """A sheet per picture: `rows(subject, picture, what was found in it)` of every encoder, below each other."""
    for photo, *values in zip(photos, *(results[subject.label].values(photos) for subject in subjects), strict=True):
        picture = fit(photo.open())
        yield Sheet(
            photo.name,
            [row for subject, maps in zip(subjects, values, strict=True) for row in rows(subject, picture, maps)],
        )


def picture_outcome(
    *,
    name: str,
    title: str,
    explanation: str,
    photos: Sequence[Photo],
    sheets: Iterable[Sheet],
    tables: Sequence[Table],
    lines: Sequence[str],
    frame: Frame,
    show: int,
    before: Sequence[Section] = (),
) -> Outcome:
    """Write a sheet per picture, one at a time, and gather the page: its first `show` sheets are inside it.

    `before` are sections that stand above them.
    """
    folder = frame.output / SHEETS
    folder.mkdir(parents=True, exist_ok=True)
    figures: list[Figure] = []
    files: list[str] = []
    for done, (photo, sheet) in enumerate(zip(photos, sheets, strict=True), start=1):
        # By its whole name: cat.png and cat.jpg are two pictures.
        file = f"{name}-{photo.name}"
        png = sheet.png()
        _write(folder / f"{file}.png", png)
        _write(folder / f"{file}.svg", sheet.svg().encode())
        files.append(f"{SHEETS}/{file}.png")
        if len(figures) < show:
            figures.append(Figure(png, f"{photo.name}: {name}"))
        frame.progress(f"{name} sheets", done, len(photos))
    count = f"{len(photos)} picture{'s' * (len(photos) != 1)}"
    rest = "" if len(photos) <= show else f", the first {show} here, all in the folder {SHEETS}"
    sections = [*before, Section("What is shown", [explanation], tables=tables), Section("Pictures", figures=figures)]
    data = {
        "analysis": name,
        "images": len(photos),
        "explanation": explanation,
        "tables": [{"title": table.title, "rows": list(table.rows)} for table in tables],
        "sheets": files,
    }
    return Outcome(data, {f"{name}.json": data, f"{name}.html": page(title, count + rest, sections)}, lines, tables)


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all: an interrupted sheet must not look like a finished one."""
    staging = path.with_name(f".{path.name}.tmp")
    staging.write_bytes(content)
    staging.replace(path)
