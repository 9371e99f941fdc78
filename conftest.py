"""Leaves runtimes out of the doctests whose package is not installed, and says so at the top."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from hwprune.runtime.base import REGISTRY

ABSENT = {kind: entry for kind, entry in REGISTRY.items() if importlib.util.find_spec(entry[2]) is None}
collect_ignore = [
    str(Path(__file__).parent / Path(*entry[0].split(".")).with_suffix(".py")) for entry in ABSENT.values()
]


def pytest_report_header() -> list[str]:
    """One line for every runtime that is left out."""
    return [f"skipped: {kind} needs {entry[2]}, pip install '{entry[3]}'" for kind, entry in ABSENT.items()]
