"""What the subcommands of `fusionkit analyze` share: their options, progress, and how a result leaves."""

from __future__ import annotations

import json as json_text
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fusionkit.cli.output import emit, emit_json, note, progress_bar, table
from fusionkit.cli.writing import make_folder, replacing
from fusionkit.errors import UsageError

if TYPE_CHECKING:
    from fusionkit.analysis.outcome import Frame, Outcome, Progress


class Device(StrEnum):
    """Where to run."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


QUIET = 5.0
"""Seconds between lines of progress where there is no terminal."""

WORDS_HELP = (
    "Encoders, then a folder of pictures (or one picture). An encoder: a registered one with options "
    "(`timm,model=NAME,image_size=448`), a stream of a recipe (`tiny:semantic`) or of a checkpoint "
    "(`checkpoint:tiny:spatial`, `runs/mine`)."
)
WordsArg = Annotated[list[str], typer.Argument(metavar="ENCODER... IMAGES", help=WORDS_HELP, show_default=False)]
OutputOption = Annotated[
    Path, typer.Option("-o", "--output", metavar="FOLDER", help="Where the report goes; partial results too.")
]
LayersOption = Annotated[
    str | None, typer.Option("--layers", metavar="1,4,8-12", help="Which layers.", show_default=False)
]
BatchOption = Annotated[int, typer.Option("--batch", min=1, help="Pictures at a time.")]
DeviceOption = Annotated[Device, typer.Option("--device", help="Where to run; auto takes a GPU if there is one.")]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Drop partial results and start again.", show_default=False)]
ShowOption = Annotated[
    int, typer.Option("--show", min=0, help="So many sheets stand in the page; all are in the folder.")
]
PasteOption = Annotated[
    bool,
    typer.Option("--paste", help="Print only the lines of a recipe that use the result.", show_default=False),
]


def split_words(words: list[str], example: str) -> tuple[list[str], str]:
    """(encoders, pictures); raises UsageError when one of them is missing."""
    if len(words) < 2:
        raise UsageError(f"name at least one encoder, then the pictures; for example: {example}")
    return words[:-1], words[-1]


def make_frame(output: Path, device: Device, batch: int, fresh: bool, progress: Progress) -> Frame:
    """The frame of an analysis; makes the output folder. Raises UsageError for a device that is not there."""
    import torch

    from fusionkit.analysis.outcome import Frame

    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    name = next(name for name in ("cuda", "mps", "cpu") if there[name]) if device == "auto" else device.value
    if not there[name]:
        raise UsageError(f"--device {name}: there is none on this machine; use cpu")
    make_folder(output)
    return Frame(output, name, batch, fresh, progress)


def finish(outcome: Outcome, output: Path, json: bool, paste: bool = False) -> None:
    """Write the files; print the result as text, as JSON, or only the fragment. Raises UsageError."""
    if json and paste:
        raise UsageError("give one of --json and --paste: both are printed on stdout")
    for name, content in outcome.files.items():
        make_folder((output / name).parent)
        with replacing(output / name) as staging:
            if isinstance(content, bytes):
                staging.write_bytes(content)
            elif isinstance(content, str):
                staging.write_text(content, encoding="utf-8")
            else:
                text = json_text.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
                staging.write_text(text + "\n", encoding="utf-8")
    if json:
        emit_json(outcome.data)
    elif paste:
        emit(outcome.fragment)
    else:
        _show(outcome)
    for name in outcome.files:
        if name.endswith(".html"):
            note(f"wrote {output / name}")


def _show(outcome: Outcome) -> None:
    from fusionkit.analysis.page import cell

    for each in outcome.tables:
        if each.rows:
            headers = tuple(each.rows[0])
            emit(each.title)
            table(headers, [[cell(row[name]) for name in headers] for row in each.rows], right=frozenset(headers))
            emit()
    for line in outcome.lines:
        emit(line)


@contextmanager
def interruptible() -> Iterator[Progress]:
    """Shows progress on stderr, and says on Ctrl-C that nothing done is lost."""
    try:
        with _progress() as progress:
            yield progress
    except KeyboardInterrupt:
        note("stopped; the same command goes on from here")
        raise


def _progress() -> AbstractContextManager[Progress]:
    """A bar on a terminal, else a line every few seconds."""
    said_at, said = -QUIET, ""

    def say(what: str, done: int, total: int) -> None:
        nonlocal said_at, said
        now = time.monotonic()
        if done == total or what != said or now - said_at > QUIET:
            note(f"{what}: {done}/{total} pictures")
            said_at, said = now, what

    return progress_bar(say)
