"""On one machine, who measures is alone: whoever works steps aside until that is over.

Two locks of files, which the system frees when their holder dies. Workers share the *room* and whoever
measures has it alone. All pass the *turnstile* on their way in, so that who waits to measure goes first.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from hwprune.errors import HostError


class Worker:
    """A process that computes and can step aside.

    A context: within it the worker has its place in the room.

    Args:
        folder: Where the locks are; every process of the machine that names the same one takes part.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._turnstile, self._room = _lock_files(folder)

    def __enter__(self) -> Worker:
        self._step_in()
        return self

    def __exit__(self, *_error: object) -> None:
        self._room.close()  # which leaves it
        self._turnstile.close()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Outside of the room for a while; on the way back in, those who measure go first."""
        _flock(self._room, "LOCK_UN")
        try:
            yield
        finally:
            self._step_in()

    def step_aside(self) -> None:
        """Lets whoever waits to measure do so, and waits until that is over."""
        with self.aside():
            pass

    def _step_in(self) -> None:
        with _passing(self._turnstile):
            _flock(self._room, "LOCK_SH")


@contextmanager
def alone(folder: Path | None = None) -> Iterator[None]:
    """Waits until every worker has stepped aside, and keeps them and others who measure out.

    Args:
        folder: See :class:`Worker`.
    """
    turnstile, room = _lock_files(folder)
    with turnstile, room, _passing(turnstile):
        _flock(room, "LOCK_EX")
        yield


@contextmanager
def _passing(turnstile: IO[bytes]) -> Iterator[None]:
    _flock(turnstile, "LOCK_EX")
    try:
        yield
    finally:
        _flock(turnstile, "LOCK_UN")


def _flock(file: IO[bytes], operation: str) -> None:
    import fcntl  # not on every system that the rest of the package runs on

    fcntl.flock(file, getattr(fcntl, operation))


def _lock_files(folder: Path | None) -> tuple[IO[bytes], IO[bytes]]:
    """The turnstile and the room of the machine, or of those who share ``folder``."""
    place = folder or _own_folder()
    return _lock_file(place / "turnstile"), _lock_file(place / "room")


def _own_folder() -> Path:
    """The user's own folder among the temporary files, where anybody can put something of that name first.

    Raises:
        HostError: If somebody has.
    """
    place = Path(tempfile.gettempdir()) / f"hwprune-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        place.mkdir(mode=0o700)
    found = place.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise HostError(
            "the folder of the locks is open to others",
            where=place,
            expected=f"a folder of user {os.getuid()} that nobody else may enter",
            got=f"{stat.filemode(found.st_mode)} of user {found.st_uid}",
            hint="remove it, or set TMPDIR to a folder of your own",
        )
    return place


def _lock_file(path: Path) -> IO[bytes]:
    """A file to lock, made where it is missing; never one that a link leads to, and never emptied."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+b")
