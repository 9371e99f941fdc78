"""TensorBoard beside the history: the same numbers, and the living groups of every layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hwprune.cli.progress import Lines
from hwprune.errors import MissingPackageError
from hwprune.phases import Observer
from hwprune.processes import is_first

#: Columns of the history that make a curve.
CURVES = ("loss", "accuracy", "groups_alive", "predicted_us", "strength", "learning_rate", "seconds")


class Curves:
    """Passes everything on to another observer, and writes a point per epoch and curve.

    Args:
        observer: The other one.
        writer: A ``SummaryWriter``.
    """

    def __init__(self, observer: Observer, writer: Any) -> None:
        self._observer, self._writer = observer, writer
        self.note, self.phase, self.batch = observer.note, observer.phase, observer.batch

    def epoch(self, row: dict[str, Any], alive: Mapping[str, int]) -> None:
        """A point per curve, the phases side by side, and one per layer."""
        phase, epoch = row["phase"], row["epoch"]
        for name in CURVES:
            self._writer.add_scalar(f"{name}/{phase}", row[name], epoch)
        for layer, count in alive.items():
            self._writer.add_scalar(f"alive_{phase}/{layer}", count, epoch)
        self._writer.flush()  # a killed run leaves what it had
        self._observer.epoch(row, alive)


@contextmanager
def drawing(observer: Lines, folder: Path | None) -> Iterator[Observer]:
    """Draws curves in ``folder``, in the first process; the observer as it is for ``None``.

    Raises:
        MissingPackageError: If TensorBoard is not installed.
    """
    if folder is None or not is_first():
        yield observer
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingPackageError(
            "curves need the package tensorboard",
            where="--tensorboard",
            hint="run pip install 'hwprune[tensorboard]'",
        ) from error
    with SummaryWriter(str(folder)) as writer:
        yield Curves(observer, writer)
