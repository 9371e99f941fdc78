"""How long work shows: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hwprune.phases import epoch_line, phase_line
from hwprune.processes import is_first
from hwprune.runtime.sampling import telling_rows

#: Seconds between two lines about the rows of a table.
ROWS_INTERVAL = 30.0


class Lines:
    """Plain lines, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tell_rows = telling_rows(self.note, ROWS_INTERVAL)

    def note(self, line: str) -> None:
        """Something the user should know."""
        self._console.print(line, markup=False, soft_wrap=True)

    def phase(self, name: str, batches: int, done: int) -> None:
        """A training begins."""
        self.note(phase_line(name, batches, done))

    def batch(self, loss: float) -> None:
        """Batches make no lines."""

    def epoch(self, row: dict[str, Any], alive: Mapping[str, int]) -> None:
        """A row of the history."""
        self.note(epoch_line(row))

    def rows(self, done: int, total: int) -> None:
        """Rows of a table make a line now and then."""
        self._tell_rows(done, total)

    def tasks(self, done: int, total: int) -> None:
        """Tasks make no lines of their own."""


class Bar(Lines):
    """A progress bar, for terminals."""

    def __init__(self, console: Console, progress: Progress) -> None:
        super().__init__(console)
        self._progress = progress
        self._task: Any = None
        self._all_tasks: Any = None
        self._last_epoch = ""

    def phase(self, name: str, batches: int, done: int) -> None:
        """A bar for the batches of a training."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._last_epoch = ""  # of another network
        self._task = self._progress.add_task(name, total=batches, completed=done, status="")

    def batch(self, loss: float) -> None:
        """One batch further."""
        self._progress.update(self._task, advance=1, status=f"loss {loss:.3f}{self._last_epoch}")

    def epoch(self, row: dict[str, Any], alive: Mapping[str, int]) -> None:
        """A line above the bar, and what it says beside the bar from now on."""
        super().epoch(row, alive)
        self._last_epoch = f"; after epoch {row['epoch']}: accuracy {row['accuracy']:.2%}"
        if "groups_alive" in row:
            self._last_epoch += f", {row['groups_alive']} groups"
            if row["predicted_us"] is not None:
                self._last_epoch += f", {row['predicted_us']:.0f} us"

    def rows(self, done: int, total: int) -> None:
        """A bar for the rows of a table, as many as are known to be needed so far."""
        if self._task is None:
            self._task = self._progress.add_task("rows", status="")
        self._progress.update(self._task, completed=done, total=total)

    def tasks(self, done: int, total: int) -> None:
        """A bar for all tasks, above that of a training."""
        if self._all_tasks is None:
            self._all_tasks = self._progress.add_task("tasks", status="")
        self._progress.update(self._all_tasks, completed=done, total=total)


@contextmanager
def observing(console: Console) -> Iterator[Lines]:
    """A progress bar on a terminal, plain lines elsewhere; the first of several processes tells for all."""
    if not is_first():
        yield Lines(Console(quiet=True))
        return
    if not console.is_terminal:
        yield Lines(console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield Bar(console, progress)
