"""A run on a machine that something disturbs until one has waited: what is measured then is what counts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from profiles_here import shipped_as_here
from silent import Silent

from hwprune.pipeline import compress
from hwprune.runtime import patience
from hwprune.runtime.bench import ThisMachine
from hwprune.runtime.patience import LEAST_SECONDS
from hwprune.runtime.timing import Timing
from hwprune.settings import Settings
from hwprune.targets import Speedup
from hwprune.train.loop import Recipe

#: What the dense network takes, and how much longer where something disturbs the machine.
DENSE_US, SLOWER = 100.0, 1.2


class Disturbed(ThisMachine):
    """The first timing is quiet; after it only those right after a pause are. A network takes its size."""

    def __init__(self) -> None:
        self.quiet, self.pauses, self.timed = True, list[float](), 0

    def localize(self, profile: Any, *_arguments: object, **_named: object) -> Any:
        return profile

    def wait(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.quiet = True

    def time(self, paths: Mapping[str, Path], *_arguments: object) -> dict[str, Timing]:
        slower, self.quiet = 1.0 if self.quiet else SLOWER, False
        self.timed += 1
        sizes = {name: path.stat().st_size for name, path in paths.items()}
        took = {name: DENSE_US * slower * size / sizes["dense"] for name, size in sizes.items()}
        return {name: Timing(us, us, us, 9) for name, us in took.items()}


def test_every_turn_and_the_final_timing_wait_for_the_disturbance_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "LEAST_SECONDS", LEAST_SECONDS)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bench, observer = Disturbed(), Silent()
    settings = Settings("resnet8", "digits", "x86-avx2-ort", Speedup(1.5), Recipe(1, 128), train_images=256)
    compress(settings, shipped_as_here(), tmp_path / "run", observer, resume=False, bench=bench)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    turns = len(report["turns"])
    assert turns >= 1
    # The calibration, then every turn and the final timing twice each.
    assert bench.timed == 1 + 2 * turns + 2
    assert bench.pauses == [5.0] * (turns + 1)
    assert [turn["dense_us"] for turn in report["turns"]] == [DENSE_US] * turns
    assert report["dense"]["latency_us"]["median"] == DENSE_US
    assert sum("something disturbs the machine, timing again" in line for line in observer.lines) == turns + 1
