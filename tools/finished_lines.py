"""Finished runs as lines of JSON, so that a comparison goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records in a file, in order; without the last one where a killed run left half of it.

    Args:
        path: The file; where there is none, nothing is finished.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in _whole(text).splitlines()]


def add_line(path: Path, record: Mapping[str, Any]) -> None:
    """Adds a record, in the place of half a one that a killed run left.

    Args:
        path: The file; made where it is missing.
        record: Of strings and numbers.
    """
    with path.open("a+", encoding="utf-8") as file:
        file.seek(0)
        whole = len(_whole(file.read()).encode())
        file.seek(whole)
        file.truncate()
        file.write(json.dumps(record) + "\n")


def _whole(text: str) -> str:
    """The lines of a text that were written to their ends."""
    return text[: text.rfind("\n") + 1]
