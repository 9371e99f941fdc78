"""Files and folders as bytes, for machines that share no disk."""

from __future__ import annotations

import io
import shutil
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

#: Begins the names of folders that hold what is being unpacked.
ARRIVING = ".arriving-"


def pack(root: Path, names: Iterable[str]) -> bytes:
    """The files and folders of these names below ``root``, those that exist.

    Args:
        root: The folder.
        names: Paths relative to it.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", strict_timestamps=False) as archive:
        for name in names:
            whole = root / name
            for item in (whole, *sorted(whole.rglob("*"))) if whole.exists() else ():
                archive.write(item, item.relative_to(root))
    return buffer.getvalue()


def unpack(parcel: bytes, root: Path, names: Iterable[str]) -> None:
    """Puts what :func:`pack` gave below another root, each name in the place of what was there.

    A killed process leaves the old file or folder, the new one or none, never a part of one.

    Args:
        parcel: The bytes.
        root: The folder; made where it is missing.
        names: Those that were packed, or some of them.
    """
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=ARRIVING) as folder:
        with zipfile.ZipFile(io.BytesIO(parcel)) as archive:
            archive.extractall(folder)  # below the folder, whatever the names say
        for name in names:
            arrived, place = Path(folder) / name, root / name
            if not arrived.exists():
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.is_dir():
                shutil.rmtree(place)
            arrived.replace(place)
