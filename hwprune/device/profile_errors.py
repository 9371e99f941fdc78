"""What is wrong in the file of a profile: line, key, what was expected and what stands there."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from hwprune.device.kernel_factors import KernelFactors
from hwprune.device.profile import Hardware, LatencySpec, Provenance, Rule, RuntimeSpec
from hwprune.errors import ProfileError

Location = Sequence[str | int]

_SECTIONS: dict[str, type[BaseModel]] = {
    "hardware": Hardware,
    "runtime": RuntimeSpec,
    "rule": Rule,
    "latency": LatencySpec,
    "provenance": Provenance,
}
#: Tables in sections.
_TABLES: dict[tuple[str, ...], type[BaseModel]] = {("latency", "kernels"): KernelFactors}
#: The keys of a whole profile.
TOP_LEVEL = ("schema", "name", *_SECTIONS)
_HEADER = re.compile(r"\s*(\[\[?)\s*([\w.-]+)\s*\]")
_KEY = re.compile(r"\s*\"?([\w.-]+)\"?\s*=")
#: How messages of pydantic begin, and how the same is said after "expected".
_WORDS = (
    ("Value error, ", ""),
    ("Input should be greater than or equal to ", "at least "),
    ("Input should be greater than ", "a number above "),
    ("Input should be less than or equal to ", "at most "),
    ("Input should be a valid ", "a valid "),
    ("Input should be ", ""),
)


def told(path: Path, text: str, content: Mapping[str, Any], error: ValidationError) -> ProfileError:
    """The first error of a profile's validation.

    Args:
        path: The file.
        text: What stands in it.
        content: The same, parsed.
        error: What the validation found.
    """
    first = error.errors()[0]
    location = first["loc"]
    if first["type"] == "extra_forbidden":
        return unknown_key(path, text, location, first["input"])
    if first["type"] == "missing":
        unknown = [str(other["loc"][-1]) for other in error.errors() if other["type"] == "extra_forbidden"]
        return _missing_key(where(path, text, location), content, location, unknown)
    return ProfileError(
        "a value of the profile is wrong",
        where=where(path, text, location),
        expected=_expected(first["type"], first["msg"], location),
        got=_shown(first["input"]),
    )


def unknown_key(path: Path, text: str, location: Location, value: object) -> ProfileError:
    """The error for a key that a profile does not have.

    Args:
        path: The file.
        text: What stands in it.
        location: The key, with the sections that it is in.
        value: What it is set to.
    """
    known = _known_keys(location[:-1])
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    return ProfileError(
        "unknown key in the profile",
        where=where(path, text, location),
        expected=f"one of {', '.join(known)}" if known else "no key here",
        got=f"{location[-1]} = {_shown(value)}",
        hint=f"did you mean {close[0]!r}?" if close else None,
    )


def where(path: Path, text: str, location: Location) -> str:
    r"""File, line and key; the line of the section where the key is not there.

    >>> where(Path("profile.toml"), "[[rule]]\nop = '*'\n[[rule]]\nop = 'x'", ("rule", 1, "op"))
    'profile.toml, line 4, key rule.1.op'
    """
    key = ".".join(map(str, location))
    lines = _lines(text)
    found = [lines[part] for end in range(len(location), 0, -1) if (part := tuple(location[:end])) in lines]
    return f"{path}, line {found[0]}, key {key}" if found else f"{path}, key {key}"


def _lines(text: str) -> dict[tuple[str | int, ...], int]:
    """Location of every section and key to the number of its line."""
    section: tuple[str | int, ...] = ()
    lines: dict[tuple[str | int, ...], int] = {}
    count: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            section = tuple(header[2].split("."))
            if header[1] == "[[":
                lines.setdefault(section, number)
                place = count[header[2]] = count.get(header[2], -1) + 1
                section = (*section, place)
            lines.setdefault(section, number)
        elif key := _KEY.match(line):
            lines.setdefault((*section, *key[1].split(".")), number)
    return lines


def _missing_key(
    place: str, content: Mapping[str, Any], location: Location, unknown: Sequence[str]
) -> ProfileError:
    *sections, name = location
    there: Any = content
    for part in sections:
        there = there[part]
    section = f"[{name}]" if name in _SECTIONS and not sections else str(name)
    close = difflib.get_close_matches(str(name), unknown, n=1)
    return ProfileError(
        "a key of the profile is missing",
        where=place,
        expected=f"{section} besides what is there",
        got=f"only {', '.join(map(str, there)) or 'an empty section'}",
        hint=f"{close[0]!r} looks like a misspelling of it" if close else None,
    )


def _expected(kind: str, message: str, location: Location) -> str:
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"a section [{'.'.join(map(str, location))}]"
    if kind in ("tuple_type", "too_short"):
        return f"at least one section [[{location[0]}]]"
    for beginning, instead in _WORDS:
        if message.startswith(beginning):
            return instead + message.removeprefix(beginning)
    return message


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} = {item!r}" for key, item in value.items()) or "nothing"
    return repr(value)


def _known_keys(location: Location) -> list[str]:
    """The keys of the section at ``location``, as the file spells them."""
    if not location:
        return list(TOP_LEVEL)
    names = [part for part in location if isinstance(part, str)]  # rules have numbers besides
    section = _SECTIONS.get(names[0]) if len(names) == 1 else _TABLES.get(tuple(names))
    return list(section.model_fields) if section else []
