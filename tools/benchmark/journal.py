"""Runs and what they came to, kept as lines of JSON so that a benchmark goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from task import Task

sys.path.append(str(Path(__file__).resolve().parents[1]))  # what all comparisons share lies there

from finished_lines import add_line, read_lines

DENSE = "dense"


@dataclass(frozen=True, slots=True)
class Run:
    """One contender at one target with one seed.

    Attributes:
        task: The task.
        contender: Its name, or :data:`DENSE`.
        seed: Of the first weights and of the order of the images.
        speedup: How many times faster than dense.
        regularisation: Strength of the contender's own regulariser; 0: it has none, or the package's default.
    """

    task: Task
    contender: str
    seed: int
    speedup: float
    regularisation: float = 0.0

    @property
    def key(self) -> str:
        """A file name of its own."""
        facts = hashlib.sha256(json.dumps(asdict(self.task), sort_keys=True).encode()).hexdigest()[:10]
        strength = f"-{self.regularisation:g}" if self.regularisation else ""
        return f"{self.contender}{strength}-{self.seed}-{self.speedup:g}-{facts}"

    @property
    def dense(self) -> Run:
        """The run of the dense network with the same task and seed."""
        return replace(self, contender=DENSE, speedup=1.0, regularisation=0.0)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Run:
        """From what ``dataclasses.asdict`` made."""
        return cls(**{**record, "task": Task(**record["task"])})


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to.

    Attributes:
        accuracy: On all test images, in [0, 1].
        seconds: Of its trainings and searches, without those of the dense network.
        trainings: How often it had to be trained to land on the target.
        channels: Output channels of its convolutions.
        parameters: Number of parameters.
        error: Why it failed; empty where it did not.
        tries: Networks that were timed to land on the target.
        groups: Channels that are left, in the device's steps; 0 where nobody counted.
    """

    accuracy: float
    seconds: float
    trainings: int
    channels: int
    parameters: int
    error: str = ""
    tries: int = 0
    groups: int = 0

    @classmethod
    def failed(cls, error: str) -> Outcome:
        """Of a run that ended in an error."""
        return cls(0.0, 0.0, 0, 0, 0, error)


def read(path: Path, made_by: str | None = None) -> dict[Run, Outcome]:
    """The finished runs in ``path``, in order.

    Args:
        path: Where they are noted.
        made_by: Only those of this code (:func:`revision.fingerprint`); ``None``: of any.
    """
    return {
        Run.from_record(line["run"]): Outcome(**line["outcome"])
        for line in read_lines(path)
        if made_by in (None, line.get("made_by"))
    }


def note(path: Path, run: Run, outcome: Outcome, made_by: str = "") -> None:
    """Adds a finished run.

    Args:
        path: Where it is noted.
        run: What was done.
        outcome: What it came to.
        made_by: By which code.
    """
    add_line(path, {"run": asdict(run), "outcome": asdict(outcome), "made_by": made_by})
