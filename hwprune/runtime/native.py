"""Native code that writes to the terminal, and converters that may die: both kept at arm's length."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from hwprune.errors import RuntimeUnavailableError

_STREAMS = (1, 2)


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keeps what native code prints off stdout and stderr, where the commands print results and errors.

    The file descriptors of the whole process are redirected: keep it short, and print nothing inside.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    kept = [os.dup(number) for number in _STREAMS]
    with tempfile.TemporaryFile() as sink:
        for number in _STREAMS:
            os.dup2(sink.fileno(), number)
        try:
            yield
        finally:
            for number, copy in zip(_STREAMS, kept, strict=True):
                os.dup2(copy, number)
                os.close(copy)


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
    if done.returncode > 0 or not all(path.is_file() and path.stat().st_size for path in expected):
        raise RuntimeUnavailableError(f"{what} refuses the model", where=where, got=_reason(told))
    return told


def _reason(told: str) -> str:
    """The line of a converter's output that says most about why it failed."""
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    telling = [
        line for line in lines if any(word in line.lower() for word in ("not support", "failed", "error"))
    ]
    return next(iter(telling or lines[-1:]), "no message")
