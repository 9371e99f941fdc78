"""One training in several processes: what must be decided once is decided by the first of them.

Everything here does nothing in a single process. The processes are those of the default process group.
"""

from __future__ import annotations

import datetime
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from hwprune.errors import TrainingError

Value = TypeVar("Value")
Error = TypeVar("Error", bound=Exception)
#: How long the others wait for what the first process measures; a network's rows can take an hour.
PATIENCE = datetime.timedelta(hours=12)
#: Noted on errors that another process has sent, mostly the first.
TOLD_ELSEWHERE = "Another one of the processes tells this."
#: What launchers tell their processes.
_LAUNCHED = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}


@dataclass(frozen=True, slots=True)
class _Outcome(Generic[Value]):
    """A value or an error, to be sent."""

    value: Value | None
    error: Exception | None

    @classmethod
    def of(cls, compute: Callable[[], Value]) -> _Outcome[Value]:
        try:
            return cls(compute(), None)
        except Exception as error:  # raised in every process, or the others would wait for ever
            return cls(None, error)

    def get(self) -> Value:
        if self.error is not None:
            if not is_first():
                self.error.add_note(TOLD_ELSEWHERE)
            raise self.error
        return cast("Value", self.value)


def distributed() -> bool:
    """Whether ``torch.distributed`` is set up, be it for one process."""
    return dist.is_available() and dist.is_initialized()


def process_count() -> int:
    """How many processes train together; 1 outside ``torch.distributed``."""
    return dist.get_world_size() if distributed() else 1


def launched_count() -> int:
    """How many processes ``torchrun`` started; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if os.environ.keys() >= _LAUNCHED else 1


def process_rank() -> int:
    """The number of this process among those that train together; 0 outside ``torch.distributed``."""
    return dist.get_rank() if distributed() else 0


def is_first() -> bool:
    """Whether this process is the one that measures and writes."""
    return process_rank() == 0


def from_first(compute: Callable[[], Value]) -> Value:
    """What ``compute`` gives in the first process, in all of them; the others wait.

    Args:
        compute: Called in the first process only; what it returns is sent to the others.

    Raises:
        Exception: What ``compute`` raises, in every process.
    """
    if process_count() == 1:
        return compute()
    with _waiting_group() as waiting:
        outcome: list[_Outcome[Value] | None] = [_Outcome.of(compute) if is_first() else None]
        dist.broadcast_object_list(outcome, src=0, group=waiting)
    assert outcome[0] is not None  # the first process sent one
    return outcome[0].get()


def in_all(compute: Callable[[], Value]) -> Value:
    """What ``compute`` gives in this process; all of them compute, and what fails in one fails in all.

    For what comes out alike in every process, unless one lacks a file that the others have.

    Args:
        compute: Called in every process.

    Raises:
        Exception: What ``compute`` raises in the first process in which it fails, which tells it.
    """
    if process_count() == 1:
        return compute()
    mine = _Outcome.of(compute)
    errors = from_each(mine.error)
    failed = next((rank for rank, error in enumerate(errors) if error is not None), None)
    if failed is None:
        return cast("Value", mine.value)
    error = mine.error if failed == process_rank() else errors[failed]
    assert error is not None  # of the first that failed
    if failed != process_rank():
        error.add_note(TOLD_ELSEWHERE)
    raise error


def alike(error: Error) -> Error:
    """Marks an error that every process that ``torchrun`` started raises: the first of them tells it."""
    if launched_count() > 1 and os.environ["RANK"] != "0":
        error.add_note(TOLD_ELSEWHERE)
    return error


def from_each(value: Value) -> list[Value]:
    """The values of all processes, in each of them; the others wait.

    Args:
        value: This process's; sent to the others.
    """
    if process_count() == 1:
        return [value]
    values: list[Value | None] = [None] * process_count()
    with _waiting_group() as waiting:
        dist.all_gather_object(values, value, group=waiting)
    return cast("list[Value]", values)


@contextmanager
def _waiting_group() -> Iterator[dist.ProcessGroup]:
    """A group of its own: objects travel on the CPU, and may be waited for longer than a training step."""
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    try:
        yield group
    finally:
        dist.destroy_process_group(group)


def on_first(compute: Callable[[], Value]) -> Value | None:
    """What ``compute`` gives, in the first process only; the others wait and get ``None``.

    Args:
        compute: Called in the first process only; what it returns need not be fit for sending.

    Raises:
        Exception: What ``compute`` raises, in every process.
    """
    mine: list[Value] = []
    from_first(lambda: mine.append(compute()))
    return mine[0] if mine else None


def is_lost_process(error: Exception) -> bool:
    """Whether an error is that another process has gone, and not one of this process's own work."""
    return isinstance(error, RuntimeError) and (isinstance(error, dist.DistError) or "gloo" in str(error))


@contextmanager
def joined() -> Iterator[None]:
    """Within the context this process trains with the others that ``torchrun`` started; else with none.

    Raises:
        TrainingError: If one of the others has gone, or the launcher ends this process, as it does then.
    """
    if distributed() or not os.environ.keys() >= _LAUNCHED:
        yield
        return
    dist.init_process_group("gloo")
    try:
        with _told_to_end():
            yield
    except _ToldToEnd as error:
        raise TrainingError(
            "this process was told to end",
            got="SIGTERM",
            hint="where another one of this run has gone, start all of them again with --resume",
        ) from error
    except RuntimeError as error:
        if not is_lost_process(error):
            raise
        raise TrainingError(
            "another process of this run has gone",
            got=str(error).strip().splitlines()[0],
            hint="start all of them again with --resume",
        ) from error
    finally:
        dist.destroy_process_group()


class _ToldToEnd(BaseException):
    """A launcher ends this process: nothing that handles the errors of networks may go on after it."""


@contextmanager
def _told_to_end() -> Iterator[None]:
    """Within the context the signal that ends a process unwinds it, so that somebody can tell."""

    def end(_number: int, _frame: object) -> None:
        raise _ToldToEnd

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def agree_(tensor: Tensor) -> Tensor:
    """Overwrites a tensor with the first process's, so that rounding cannot make decisions differ.

    Args:
        tensor: Of the same shape in every process; returned.
    """
    if process_count() > 1:
        # Not every backend sends flags.
        dist.broadcast(tensor.view(torch.uint8) if tensor.dtype is torch.bool else tensor, src=0)
    return tensor
