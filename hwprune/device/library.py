"""Finding profiles and reading them: the search path, and messages that say what is wrong in which file."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from platformdirs import user_data_path
from pydantic import ValidationError

from hwprune.device.profile import PROFILE_FILE, DeviceProfile
from hwprune.device.profile_errors import TOP_LEVEL, told, unknown_key, where
from hwprune.errors import InputError, ProfileError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def shipped_folder() -> Path:
    """The profiles that come with the package: inside a wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "profiles"
    return inside if inside.is_dir() else package.parent / "profiles"


def search_path(first: Path | None = None) -> tuple[Path, ...]:
    """Folders that profiles are looked for in, in order.

    Args:
        first: A folder given by the user, looked in before the others.
    """
    from_environment = os.environ.get("HWPRUNE_PROFILES")
    candidates = [
        first,
        Path(from_environment) if from_environment else None,
        user_data_path("hwprune") / "profiles",
        shipped_folder(),
    ]
    return tuple(folder for folder in candidates if folder is not None)


def find_profiles(search: Path | None = None) -> tuple[DeviceProfile, ...]:
    """Every profile on the search path, by name; the first of a name counts.

    Args:
        search: A folder looked in first.

    Raises:
        ProfileError: If a profile is malformed, or ``search`` is no folder.
    """
    found: dict[str, DeviceProfile] = {}
    for folder in _profile_folders(search):
        if folder.name not in found:
            found[folder.name] = read_profile(folder)
    return tuple(found[name] for name in sorted(found))


def load_profile(name_or_folder: str | Path, search: Path | None = None) -> DeviceProfile:
    """Loads a profile by name or from its folder.

    Args:
        name_or_folder: A name on the search path, or a folder that holds ``profile.toml``.
        search: A folder looked in first.

    Raises:
        ProfileError: If there is none, or it is malformed.
        InputError: If it is no name and no folder.
    """
    if not isinstance(name_or_folder, (str, Path)):
        raise InputError(
            "a device has a name or a folder",
            where="load_profile",
            expected="a str or a pathlib.Path",
            got=type(name_or_folder).__name__,
        )
    as_folder = Path(name_or_folder)
    if is_file(as_folder / PROFILE_FILE):
        return read_profile(as_folder)
    names: list[str] = []
    for folder in _profile_folders(search):
        if folder.name == str(name_or_folder):
            return read_profile(folder)
        names.append(folder.name)
    close = difflib.get_close_matches(str(name_or_folder), names, n=1)
    raise ProfileError(
        f"unknown device {str(name_or_folder)!r}",
        expected=f"one of {', '.join(sorted(set(names))) or '(none found)'}, or a folder with {PROFILE_FILE}",
        hint=f"did you mean {close[0]!r}?" if close else "list them with: hwprune devices",
    )


def _profile_folders(search: Path | None) -> Iterator[Path]:
    if search is not None and not search.is_dir():
        raise ProfileError("no such folder of profiles", where=search, expected="a folder")
    for root in search_path(search):
        if root.is_dir():
            yield from sorted(folder for folder in root.iterdir() if (folder / PROFILE_FILE).is_file())


def read_profile(folder: Path) -> DeviceProfile:
    """Reads and validates ``folder/profile.toml``.

    Raises:
        ProfileError: If it is not TOML, or a key is missing, unknown or of the wrong kind; the message names
            file, line, key, what was expected and what stands there.
    """
    path = folder / PROFILE_FILE
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = tomllib.loads(text)
    # Of the text, of TOML, of an integer with thousands of digits, and of tables inside tables inside tables.
    except (ValueError, RecursionError) as error:
        raise ProfileError("the profile is not TOML", where=path, got=error) from error
    except OSError as error:
        raise ProfileError("the profile cannot be read", where=path, got=error) from error
    if strangers := [key for key in content if key not in TOP_LEVEL]:
        raise unknown_key(path, text, strangers[:1], content[strangers[0]])
    try:
        profile = DeviceProfile.model_validate({**content, "folder": folder.resolve()})
    except ValidationError as error:
        raise told(path, text, content, error) from error
    if not is_name(profile.name) or profile.name != folder.resolve().name:
        raise ProfileError(
            "the profile's name is not that of its folder",
            where=where(path, text, ("name",)),
            expected=folder.resolve().name,
            got=profile.name,
        )
    table = profile.latency.table
    if table is None and profile.provenance.source != "template":
        raise ProfileError(
            "the profile has no latency table, and says that it is none without",
            where=where(path, text, ("provenance", "source")),
            expected='source = "template", or a table under [latency]',
            got=profile.provenance.source,
            hint="measure it with: hwprune profile build",
        )
    if table is not None and Path(table).name != table:
        raise ProfileError(
            "the latency table lies outside of the profile's folder",
            where=where(path, text, ("latency", "table")),
            expected="a file name",
            got=table,
        )
    if table is not None and not is_file(folder / table):
        raise ProfileError(
            "the latency table is missing",
            where=where(path, text, ("latency", "table")),
            expected=f"the file {table} beside the profile",
            hint="measure it with: hwprune profile build, or leave the key out for a template",
        )
    return profile


def is_file(path: Path) -> bool:
    """Whether there is such a file; a name that no file can have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_name(text: str) -> bool:
    """Whether a profile may have this name.

    >>> is_name("x86-avx2-ort"), is_name(".hidden")
    (True, False)
    """
    return _NAME.fullmatch(text) is not None
