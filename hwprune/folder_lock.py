"""One command at a time writes a folder: two of them would remove each other's files."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from hwprune.errors import ArtifactError


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Within the context no other command of this user on this machine takes a folder.

    The lock is the operating system's, on an empty file in the user's cache: nothing is left in the folder,
    which need not exist, and a process that is killed holds it no longer.

    Args:
        folder: The folder; links to it are the same one.

    Raises:
        ArtifactError: If another command is at work in it.
        OSError: If the user's cache cannot be written.
    """
    place = user_cache_path("hwprune") / "locks"
    place.mkdir(parents=True, exist_ok=True)
    # A home that machines share does not make one folder of their /tmp.
    key = f"{platform.node()}:{os.path.realpath(folder)}"
    lock = FileLock(place / f"{hashlib.sha256(key.encode()).hexdigest()}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ArtifactError(
            "another command of hwprune is writing the folder",
            where=folder,
            expected="one at a time",
            hint="wait until it is over, or name another folder with --out",
        ) from error
    try:
        yield
    finally:
        lock.release()
