"""The executor of one process: order, failures, and what cannot succeed any more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heard import Heard

from hwprune.errors import TrainingError
from hwprune.executors.base import InProcess
from hwprune.phases import Observer
from hwprune.runtime.bench import Bench


@dataclass(frozen=True)
class Writes:
    """A task that writes its name, or fails."""

    name: str
    requires: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    fails: bool = False

    @property
    def makes(self) -> tuple[str, ...]:
        return (self.name,)

    def run(self, root: Path, bench: Bench, observer: Observer) -> Mapping[str, Any]:
        if self.fails:
            raise TrainingError("the loss is not finite")
        (root / self.name).write_text(self.name)
        return {"wrote": self.name}


def test_what_requires_a_failed_task_fails_with_its_error_and_the_others_are_done(tmp_path: Path) -> None:
    tasks = [
        Writes("dense", fails=True),
        Writes("of dense", requires=("dense",)),
        Writes("after dense", after=("dense",)),
    ]
    observer = Heard()
    outcomes = {outcome.task.name: outcome for outcome in InProcess().run(tasks, tmp_path, observer)}
    assert [str(outcomes[name].error) for name in ("dense", "of dense")] == ["the loss is not finite"] * 2
    assert outcomes["after dense"].told == {"wrote": "after dense"}
    assert [path.name for path in tmp_path.iterdir()] == ["after dense"]
    assert observer.counts == [(0, 3), (1, 3), (2, 3), (3, 3)]
