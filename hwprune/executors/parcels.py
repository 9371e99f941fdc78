"""Files and folders as bytes, for machines that share no disk."""

from __future__ import annotations

import io
import os
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

#: Begins the names of folders that hold what is being unpacked.
ARRIVING = ".arriving-"
#: Says in an archive that an entry has Unix permissions.
_UNIX = 3


def pack(root: Path, names: Iterable[str]) -> bytes:
    """The files and folders of these names below ``root``, those that exist; links stay links.

    Args:
        root: The folder.
        names: Paths relative to it.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", strict_timestamps=False) as archive:
        for name in names:
            whole = root / name
            for item in (whole, *sorted(whole.rglob("*"))) if whole.exists() else ():
                if item.is_symlink() and item != whole:
                    archive.writestr(_as_link(item.relative_to(root)), os.readlink(item))
                else:
                    archive.write(item, item.relative_to(root))
    return buffer.getvalue()


def _as_link(name: Path) -> zipfile.ZipInfo:
    """The entry of a link, whose content is what it points to."""
    entry = zipfile.ZipInfo(name.as_posix())
    entry.create_system = _UNIX
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


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
            # Below the folder, whatever the names say.
            placed = {entry: Path(archive.extract(entry, folder)) for entry in archive.infolist()}
        # Links last: nothing is written through them.
        for entry, place in placed.items():
            if stat.S_ISLNK(entry.external_attr >> 16):
                target = place.read_text()
                place.unlink()
                place.symlink_to(target)
        for name in names:
            arrived, place = Path(folder) / name, root / name
            if place.is_symlink():  # a folder that the user keeps elsewhere
                place = place.resolve()
            if not arrived.exists():
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.is_dir():
                shutil.rmtree(place)
            arrived.replace(place)
