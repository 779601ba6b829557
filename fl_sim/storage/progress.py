"""Progress of long work: what is being done and what remains."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich import get_console
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Advance(Protocol):
    """Report ``steps`` done, and perhaps what comes next."""

    def __call__(self, steps: int = 1, doing: str | None = None) -> None:
        """Advance the bar."""


@contextmanager
def progress_bar(title: str, total: int, console: Console | None = None) -> Iterator[Advance]:
    """Show a bar of ``total`` steps on rich's console while the block runs."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[doing]}"),
    )
    shown = console or get_console()
    with Progress(*columns, console=shown, disable=shown.quiet) as progress:
        task = progress.add_task(title, total=total, doing="")

        def advance(steps: int = 1, doing: str | None = None) -> None:
            progress.update(task, advance=steps)
            if doing is not None:
                progress.update(task, doing=doing)

        yield advance
