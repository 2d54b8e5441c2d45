"""A bar on stderr for work that takes a while; on a dumb terminal a line now and then."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Bar:
    """`show(what, done, total)` moves it."""

    def __init__(self, title: str) -> None:
        self.console = Console(stderr=True)
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self.plain = not self.console.is_terminal
        self.bar = Progress(TextColumn("{task.description}"), *columns, console=self.console, disable=self.plain)
        self.title = title
        self.task = self.bar.add_task(title, total=None)
        self.tenth = -1

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bar.stop()

    def show(self, what: str, done: int, total: int) -> None:
        """Say what is being done, and how much of it is."""
        self.bar.update(self.task, description=f"{self.title}: {what}", completed=done, total=total)
        tenth = 10 * done // max(total, 1)
        if self.plain and tenth > self.tenth:
            self.tenth = tenth
            self.console.print(f"{self.title}: {what} {done}/{total}", highlight=False)
