"""The executor of one process: order, failures, and what cannot succeed any more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from heard import Heard

from hwprune.errors import HostError, TrainingError
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
    error: Exception = field(default_factory=lambda: TrainingError("the loss is not finite"))

    @property
    def makes(self) -> tuple[str, ...]:
        return (self.name,)

    def run(self, root: Path, bench: Bench, observer: Observer) -> Mapping[str, Any]:
        if self.fails:
            raise self.error
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


def test_whatever_ends_a_task_the_others_are_done_and_it_is_told_what_and_where(tmp_path: Path) -> None:
    tasks = [
        Writes("full", fails=True, error=OSError(28, "No space left on device", "/disk/model.onnx")),
        Writes("own code", fails=True, error=ZeroDivisionError("no light")),
        Writes("after"),
    ]
    outcomes = [(outcome.error, outcome.told) for outcome in InProcess().run(tasks, tmp_path, Heard())]
    full, own_code = outcomes[0][0], outcomes[1][0]
    assert isinstance(full, HostError)
    assert str(full) == "this machine: No space left on device (/disk/model.onnx) (in full)"
    assert isinstance(own_code, TrainingError)
    assert "(in own code): got ZeroDivisionError: no light" in str(own_code)
    assert Path(__file__).name in str(own_code)
    assert outcomes[2] == (None, {"wrote": "after"})


def test_an_interrupt_ends_all_tasks(tmp_path: Path) -> None:
    class Interrupted(Writes):
        def run(self, root: Path, bench: Bench, observer: Observer) -> Mapping[str, Any]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(InProcess().run([Interrupted("one"), Writes("two")], tmp_path, Heard()))
    assert not list(tmp_path.iterdir())
