"""A progress bar, or none."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

__all__ = ["progress"]


@contextlib.contextmanager
def progress(total: int | None, visible: bool, unit: str) -> Iterator[Callable[..., None]]:
    """Give ``show(number, words="")``, which moves a bar of ``total`` units if visible.

    None: nobody knows how many there will be.
    """
    if not visible:
        yield lambda number, words="": None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.table import Column
    from rich.text import Text

    class Words(ProgressColumn):
        """What gives way where the line is too short."""

        def render(self, task: Task) -> Text:
            return Text(task.fields["words"], no_wrap=True, overflow="ellipsis")

    def fixed() -> Column:
        return Column(no_wrap=True)

    columns = (
        TextColumn("{task.description}", table_column=fixed()),
        BarColumn(bar_width=12, table_column=Column(width=12)),
        MofNCompleteColumn(table_column=fixed()),
        TimeElapsedColumn(table_column=fixed()),
        Words(),
    )
    with Progress(*columns) as bar:
        task = bar.add_task(unit, total=total, words="compiling")

        def show(number: float | int, words: str = "") -> None:
            bar.update(task, completed=number, words=words)

        yield show
        # a run that ended early is done, not stuck
        bar.update(task, total=bar.tasks[0].completed)
