"""An observer of runs and of variants that shows nothing."""

from __future__ import annotations


class Silent:
    """Remembers the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)

    def phase(self, *_told: object) -> None: ...
    def batch(self, *_told: object) -> None: ...
    def epoch(self, *_told: object) -> None: ...
    def tasks(self, *_told: object) -> None: ...
