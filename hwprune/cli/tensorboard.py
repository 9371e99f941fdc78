"""TensorBoard beside the history: the same numbers, and the living groups of every layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from hwprune.errors import MissingPackageError
from hwprune.phases import Observer
from hwprune.processes import is_first

#: Columns of the history that make a curve.
CURVES = ("loss", "accuracy", "groups_alive", "predicted_us", "strength", "learning_rate", "seconds")


class Curves:
    """Passes everything on to another observer, and writes a point per epoch and curve.

    Args:
        observer: The other one.
        make_writer: Makes a ``SummaryWriter``, at the first epoch: it makes its folder, which may lie in the
            output folder and must not be there before that is checked.
    """

    def __init__(self, observer: Observer, make_writer: Callable[[], Any]) -> None:
        self._observer, self._make_writer = observer, make_writer
        self._writer: Any = None
        self.note, self.phase, self.batch = observer.note, observer.phase, observer.batch

    def epoch(self, row: dict[str, Any], alive: Mapping[str, int]) -> None:
        """A point per curve, the phases side by side, and one per layer."""
        if self._writer is None:
            self._writer = self._make_writer()
        phase, epoch = row["phase"], row["epoch"]
        for name in (curve for curve in CURVES if row.get(curve) is not None):
            self._writer.add_scalar(f"{name}/{phase}", row[name], epoch)
        for layer, count in alive.items():
            self._writer.add_scalar(f"alive_{phase}/{layer}", count, epoch)
        self._writer.flush()  # a killed run leaves what it had
        self._observer.epoch(row, alive)

    def close(self) -> None:
        """Ends the writing, if it has begun."""
        if self._writer is not None:
            self._writer.close()


def check_tensorboard() -> None:
    """Raises :class:`MissingPackageError` if TensorBoard is not installed."""
    _summary_writer()


@contextmanager
def drawing(observer: Observer, folder: Path | None) -> Iterator[Observer]:
    """Draws curves in ``folder``, in the first process; the observer as it is for ``None``.

    Raises:
        MissingPackageError: If TensorBoard is not installed.
    """
    if folder is None or not is_first():
        yield observer
        return
    make_writer = _summary_writer()
    with closing(Curves(observer, lambda: make_writer(str(folder)))) as curves:
        yield curves


def _summary_writer() -> Callable[[str], Any]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingPackageError(
            "curves need the package tensorboard",
            where="--tensorboard",
            hint="run pip install 'hwprune[tensorboard]'",
        ) from error
    return SummaryWriter
