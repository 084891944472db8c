"""A progress bar, or none."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

__all__ = ["progress"]


@contextlib.contextmanager
def progress(total: int, visible: bool, unit: str) -> Iterator[Callable[..., None]]:
    """Give ``show(number, words="")``, which moves a bar of ``total`` units if visible."""
    if not visible:
        yield lambda number, words="": None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[words]}"),
    )
    with Progress(*columns) as bar:
        task = bar.add_task(unit, total=total, words="compiling")

        def show(number: int, words: str = "") -> None:
            bar.update(task, completed=number, words=words)

        yield show
        # a run that ended early is done, not stuck
        bar.update(task, total=bar.tasks[0].completed)
