"""Tasks, and the executor that does them one after the other in this process."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hwprune.errors import HostError, HwpruneError, TrainingError
from hwprune.phases import Observer
from hwprune.runtime.bench import THIS_MACHINE, Bench


class TaskObserver(Observer, Protocol):
    """Who wants to know how several tasks go."""

    def tasks(self, done: int, total: int) -> None:
        """So many tasks are done or have failed."""
        ...


class Task(Protocol):
    """Work on files below a root, which may be a copy on another machine; it can be pickled."""

    @property
    def name(self) -> str:
        """Different from every other task's."""
        ...

    @property
    def requires(self) -> tuple[str, ...]:
        """Names of tasks without whose success this one fails too."""
        ...

    @property
    def after(self) -> tuple[str, ...]:
        """Names of tasks that must be over before this one begins, well or not."""
        ...

    @property
    def devices(self) -> tuple[str, ...]:
        """Names of the profiles that it measures on."""
        ...

    @property
    def needs(self) -> tuple[str, ...]:
        """Files and folders below the root that it reads, where they exist."""
        ...

    @property
    def makes(self) -> tuple[str, ...]:
        """Files and folders below the root that it leaves, be it to go on from where it has failed."""
        ...

    def run(self, root: Path, bench: Bench, observer: Observer) -> Mapping[str, Any]:
        """Does the work.

        Args:
            root: Where its files are.
            bench: What is measured on.
            observer: Told how it goes.

        Returns:
            What is to be known of it, as JSON.

        Raises:
            HwpruneError: If it cannot be done. Doing it again would not help.
        """
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a task.

    Attributes:
        task: The task.
        told: What it returned; nothing where it failed.
        error: Why it failed; ``None`` where it did not.
    """

    task: Task
    told: Mapping[str, Any]
    error: HwpruneError | None


class Executor(Protocol):
    """Does tasks."""

    @property
    def here(self) -> bool:
        """Whether tasks find the runtimes and files of this machine, which can be checked before them."""
        ...

    def run(self, tasks: Sequence[Task], root: Path, observer: TaskObserver) -> Iterator[Outcome]:
        """Does all tasks, and yields every one as it ends, its files in place.

        Args:
            tasks: In an order in which they could be done one by one.
            root: Where their files are.
            observer: Told how it goes.
        """
        ...


def failed_before(task: Task, outcomes: Mapping[str, Outcome]) -> HwpruneError | None:
    """Why a task cannot succeed any more: the error of one that it requires."""
    errors = [outcomes[name].error for name in task.requires if name in outcomes]
    return next((error for error in errors if error is not None), None)


def error_of(error: Exception, where: str, machine: str = "this machine") -> HwpruneError:
    """What is told of an exception that ended a task: the others go on, whatever it was.

    Args:
        error: An error of ours is told as it is.
        where: The task, or the device.
        machine: Whose file system an :class:`OSError` is of.
    """
    if isinstance(error, HwpruneError):
        return error
    if isinstance(error, OSError):  # such as a full disk
        return HostError(
            f"{machine}: {error.strerror or error} ({error.filename or 'file system'})", where=where
        )
    raised_in = traceback.extract_tb(error.__traceback__)[-1:]
    place = "".join(f" ({frame.filename}, line {frame.lineno})" for frame in raised_in)
    told = TrainingError(
        "the task ended with an error of the network's or the data's own code",
        where=where,
        got=f"{type(error).__name__}: {error}{place}",
    )
    told.__cause__ = error
    return told


#: From a task and the observer of all tasks to the observer of that one.
ObserverOf = Callable[[Task, TaskObserver], AbstractContextManager[Observer]]


class InProcess:
    """One task after the other, in this process and on this machine.

    Args:
        observer_of: Makes the observer of a task; by default all have the same.
    """

    def __init__(self, observer_of: ObserverOf = lambda _task, observer: nullcontext(observer)) -> None:
        self._observer_of = observer_of

    @property
    def here(self) -> bool:
        """They do."""
        return True

    def run(self, tasks: Sequence[Task], root: Path, observer: TaskObserver) -> Iterator[Outcome]:
        """See :meth:`Executor.run`."""
        outcomes: dict[str, Outcome] = {}
        for task in tasks:
            observer.tasks(len(outcomes), len(tasks))
            observer.note(f"task {len(outcomes) + 1} of {len(tasks)}: {task.name}")
            with self._observer_of(task, observer) as own:
                outcome = _outcome(task, root, own, failed_before(task, outcomes))
            outcomes[task.name] = outcome
            yield outcome
        observer.tasks(len(outcomes), len(tasks))


def _outcome(task: Task, root: Path, observer: Observer, error: HwpruneError | None) -> Outcome:
    """What becomes of a task that is done now, unless it cannot succeed any more."""
    if error is not None:
        return Outcome(task, {}, error)
    try:
        return Outcome(task, task.run(root, THIS_MACHINE, observer), None)
    except Exception as failure:  # of the user's own code, which may raise anything
        return Outcome(task, {}, error_of(failure, task.name))
