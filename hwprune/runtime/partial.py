"""What an unfinished build has measured, kept in one file so that it can go on where it stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any

from hwprune.device.rows import Row
from hwprune.device.steps import Steps
from hwprune.errors import ArtifactError
from hwprune.files import TEMPORARY_FILES, write_text
from hwprune.operators import Operator

#: Marks the file as ours.
MARK = "hwprune profile build, undisturbed, at one pace, among noted bytes of a pruned network"
#: Seconds between two writes: what a killed build loses at most.
INTERVAL = 5.0


def partial_file(out: Path) -> Path:
    """Where the build of a profile keeps what it has measured: beside the profile's folder."""
    place = out.absolute()  # a folder such as "." has no name of its own
    return place.with_name(f"{place.name}.partial.json")


@dataclass(slots=True)
class PartialBuild:
    """Measurements of an unfinished build.

    Attributes:
        path: The file.
        settings: Machine, runtime and options; measurements with others are worth nothing here.
        seen_us: What the reference kernel took so far; see :class:`~hwprune.runtime.steady.Watch`.
        rows: Bytes that shared the file, and the operator, to its row.
        steps: Operator that was probed to the staircase found.
        networks: Digest of a network's operators to its measured latency in microseconds.
        extends: Whether the build adds to a profile that is there already.
        busy: Whether something was measured on a busy machine.
        passes: Further passes over all rows that are complete.
    """

    path: Path
    settings: Mapping[str, str]
    seen_us: list[float] = field(default_factory=list)
    rows: dict[tuple[int, Operator], Row] = field(default_factory=dict)
    steps: dict[Operator, Steps] = field(default_factory=dict)
    networks: dict[str, float] = field(default_factory=dict)
    extends: bool = False
    busy: bool = False
    passes: int = 0
    _written: float = field(default_factory=time.monotonic)

    @classmethod
    def open(cls, path: Path, settings: Mapping[str, str], *, anew: bool = False) -> PartialBuild:
        """What an interrupted build has left, or an empty one where there is none.

        Args:
            path: The file.
            settings: What is built now.
            anew: Begin from nothing, whatever is there; the file is removed.

        Raises:
            ArtifactError: If the file is not ours, or was left by a build with other settings.
        """
        if anew:
            path.unlink(missing_ok=True)
        if not path.exists():
            return cls(path, settings)
        # Not --anew, which would replace a profile that the build was to add to.
        hint = "name another folder with --out, or remove the file to forget what was measured"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found = cls._from_record(path, content) if content.get("mark") == MARK else None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ArtifactError(
                "the unfinished build is damaged", where=path, got=error, hint=hint
            ) from error
        if found is None:
            raise ArtifactError("this file is no unfinished build", where=path, expected=MARK, hint=hint)
        changed = sorted(
            key
            for key in settings.keys() | found.settings.keys()
            if settings.get(key) != found.settings.get(key)
        )
        if changed:
            raise ArtifactError(
                "the unfinished build was begun with other settings",
                where=path,
                expected=_told(found.settings, changed),
                got=_told(settings, changed),
                hint=f"give the same options on the same machine; {hint}",
            )
        return found

    def save(self, *, now: bool = False) -> None:
        """Writes the file, at most every few seconds unless it is to be written ``now``."""
        if not self.seen_us and not self.rows and not self.steps:
            return  # nothing worth keeping yet
        if not now and time.monotonic() - self._written < INTERVAL:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, json.dumps(self._as_record(), allow_nan=False) + "\n")
        self._written = time.monotonic()

    def remove(self) -> None:
        """Removes the file, and what a killed build left half-written of it."""
        self.path.unlink(missing_ok=True)
        for left in self.path.parent.glob(TEMPORARY_FILES.replace("*", f"{self.path.name}.*", 1)):
            left.unlink()

    def _as_record(self) -> dict[str, Any]:
        return {
            "mark": MARK,
            "settings": dict(self.settings),
            "seen_us": self.seen_us,
            "rows": [
                [size, *astuple(operator), *astuple(row)[1:]] for (size, operator), row in self.rows.items()
            ],
            "steps": [[*astuple(probe), asdict(steps)] for probe, steps in self.steps.items()],
            "networks": self.networks,
            "extends": self.extends,
            "busy": self.busy,
            "passes": self.passes,
        }

    @classmethod
    def _from_record(cls, path: Path, record: Mapping[str, Any]) -> PartialBuild:
        rows = {}
        for size, *operator, median, p10, p90, runs, alone, among in record["rows"]:
            measured = Operator(*operator)
            rows[size, measured] = Row(measured, median, p10, p90, runs, alone, among)
        steps = {Operator(*probe): Steps(**found) for *probe, found in record["steps"]}
        networks = dict(record["networks"])
        return cls(
            path,
            record["settings"],
            record["seen_us"],
            rows,
            steps,
            networks,
            record["extends"],
            record.get("busy", False),
            record.get("passes", 0),
        )


def _told(settings: Mapping[str, str], keys: Sequence[str]) -> str:
    return ", ".join(f"{key} {settings.get(key, '(not given)')}" for key in keys)
