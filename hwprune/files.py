"""Writing files so that a killed run leaves the old one or the new one, never half of one."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

#: Pattern of the names that :func:`replacing` yields.
TEMPORARY_FILES = ".*.tmp"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside ``path``; on success what was written there takes its place.

    Args:
        path: The file to write. Its folder must exist.
    """
    # Threads, and containers that share a disk, can have the same process number.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        # Some writers leave files that only their owner may read.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def told_as_os_error(what: str, path: Path) -> Iterator[None]:
    """Within the context safetensors writes a file; what it makes of a full disk becomes an :class:`OSError`.

    Args:
        what: Is being written, for the message.
        path: The file that the user knows of.
    """
    try:
        yield
    except SafetensorError as error:
        raise OSError(None, f"{what} cannot be written: {error}", str(path)) from error


def write_json(path: Path, content: Any) -> None:
    """Writes ``content`` as indented JSON, atomically."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, content: str) -> None:
    """Writes text as UTF-8, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def _umask() -> int:
    """The process's mask for new files; reading it means setting it for a moment."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def sha256_of(path: Path) -> str:
    """SHA-256 of what a file holds, in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
