"""Native code that writes to the terminal, and converters that may die: both kept at arm's length."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hwprune.errors import RuntimeUnavailableError

_STREAMS = (1, 2)


@dataclass(slots=True)
class Said:
    """What native code printed.

    Attributes:
        text: Empty until the block ends.
    """

    text: str = ""


@contextlib.contextmanager
def silenced() -> Iterator[Said]:
    """Keeps what native code prints off stdout and stderr, where the commands print results and errors.

    The file descriptors of the whole process are redirected: keep it short, and print nothing inside.
    """
    said = Said()
    _flush()
    kept = [os.dup(number) for number in _STREAMS]
    with tempfile.TemporaryFile() as sink:
        for number in _STREAMS:
            os.dup2(sink.fileno(), number)
        try:
            yield said
        finally:
            _flush()
            for number, copy in zip(_STREAMS, kept, strict=True):
                os.dup2(copy, number)
                os.close(copy)
            sink.seek(0)
            said.text = sink.read().decode(errors="replace")


def _flush() -> None:
    """Empties the buffers of Python and of the C library."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    ctypes.CDLL(None).fflush(None)


def run_converter(command: Sequence[str], expected: Sequence[Path], *, what: str, where: object) -> str:
    """Runs a converter in a process of its own: a crash of it is an error, not the end of ours.

    Args:
        command: Program and arguments.
        expected: Files that it writes where it succeeds; exit codes are not relied on, since converters
            leave with 0 after errors too.
        what: The converter, for errors.
        where: The file that is converted, for errors.

    Returns:
        What it printed.

    Raises:
        RuntimeUnavailableError: If it cannot be started, dies or does not write the files.
    """
    try:
        done = subprocess.run(
            list(command), capture_output=True, text=True, errors="replace", cwd=expected[0].parent
        )
    except OSError as error:
        raise RuntimeUnavailableError(f"{what} cannot be started", where=command[0], got=error) from error
    told = done.stdout + done.stderr
    if done.returncode < 0:
        raise RuntimeUnavailableError(
            f"{what} crashed", where=where, got=signal.strsignal(-done.returncode) or done.returncode
        )
    if done.returncode > 0 or not all(path.is_file() for path in expected):
        raise RuntimeUnavailableError(f"{what} refuses the model", where=where, got=reason(told))
    return told


def reason(told: str) -> str:
    """The line of what native code printed that says most about why it failed."""
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    telling = [
        line
        for line in lines
        if any(word in line.lower() for word in ("not support", "not exist", "failed", "error"))
    ]
    return next(iter(telling or lines[-1:]), "no message")
