"""Runs and what they came to, kept as lines of JSON so that a benchmark goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from task import Task

DENSE = "dense"


@dataclass(frozen=True, slots=True)
class Run:
    """One contender at one target with one seed.

    Attributes:
        task: The task.
        contender: Its name, or :data:`DENSE`.
        seed: Of the first weights and of the order of the images.
        speedup: How many times faster than dense.
    """

    task: Task
    contender: str
    seed: int
    speedup: float

    @property
    def key(self) -> str:
        """A file name of its own."""
        facts = json.dumps(asdict(self.task), sort_keys=True)
        return (
            f"{self.contender}-{self.seed}-{self.speedup:g}-{hashlib.sha256(facts.encode()).hexdigest()[:10]}"
        )

    @property
    def dense(self) -> Run:
        """The run of the dense network with the same task and seed."""
        return replace(self, contender=DENSE, speedup=1.0)

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
    """

    accuracy: float
    seconds: float
    trainings: int
    channels: int
    parameters: int
    error: str = ""
    tries: int = 0

    @classmethod
    def failed(cls, error: str) -> Outcome:
        """Of a run that ended in an error."""
        return cls(0.0, 0.0, 0, 0, 0, error)


def read(path: Path) -> dict[Run, Outcome]:
    """The finished runs in ``path``, in order."""
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {Run.from_record(line["run"]): Outcome(**line["outcome"]) for line in lines}


def note(path: Path, run: Run, outcome: Outcome) -> None:
    """Adds a finished run."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"run": asdict(run), "outcome": asdict(outcome)}) + "\n")
