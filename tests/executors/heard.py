"""An observer for tests of executors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Heard:
    """Remembers the lines and the counts of tasks."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.counts: list[tuple[int, int]] = []

    def note(self, line: str) -> None:
        self.lines.append(line)

    def phase(self, name: str, batches: int, done: int) -> None:
        pass

    def batch(self, loss: float) -> None:
        pass

    def epoch(self, row: dict[str, Any], alive: Mapping[str, int]) -> None:
        pass

    def tasks(self, done: int, total: int) -> None:
        self.counts.append((done, total))
