"""Runs whose finished network misses its target: more is taken out and what is left trained once more."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from profiles_here import shipped_as_here
from safetensors.torch import load_file
from silent import Silent

import hwprune
from hwprune.closed_loop import Turn
from hwprune.errors import InputError
from hwprune.output_folder import STAGING
from hwprune.pipeline import CORRECTIONS, compress
from hwprune.runtime.bench import ThisMachine
from hwprune.runtime.timing import Timing
from hwprune.settings import Settings
from hwprune.targets import Keep, Speedup
from hwprune.train.loop import Recipe
from hwprune.workloads import make_model

#: What the dense network takes.
DENSE_US = 100.0


class SlowInTheEnd(ThisMachine):
    """A network takes its size; the finished slim one takes longer by a factor, whatever it was before.

    Args:
        slower: That factor.
    """

    def __init__(self, slower: float) -> None:
        self.slower, self.finished = slower, 0

    def localize(self, profile: Any, *_arguments: object, **_named: object) -> Any:
        return profile

    def time(self, paths: Mapping[str, Path], *_arguments: object) -> dict[str, Timing]:
        sizes = {name: path.stat().st_size for name, path in paths.items()}
        took = {name: DENSE_US * size / sizes["dense"] for name, size in sizes.items()}
        if paths["dense"].parent.name == STAGING:
            self.finished += 1
            took["slim"] *= self.slower
        return {name: Timing(us, us, us, 9) for name, us in took.items()}


class Listener(Silent):
    """An observer that interrupts a training where it is told to.

    Args:
        interrupted: The name of that training.
    """

    def __init__(self, interrupted: str = "") -> None:
        super().__init__()
        self._interrupted, self._phase = interrupted, ""

    def phase(self, *told: object) -> None:
        self._phase = str(told[0])

    def batch(self, *_told: object) -> None:
        if self._phase == self._interrupted:
            raise KeyboardInterrupt


def settings(**others: Any) -> Settings:
    recipe = Recipe(1, 128)
    fine_tune = Recipe(1, 128, learning_rate=0.03)
    return Settings(
        "resnet8", "digits", "x86-avx2-ort", Speedup(1.5), recipe,
        train_images=256, fine_tune=fine_tune, reconstruct=64, **others,
    )  # fmt: skip


def run(
    out: Path, slower: float, listener: Listener | None = None, *, resume: bool = False, **others: Any
) -> tuple[dict[str, Any], SlowInTheEnd]:
    bench = SlowInTheEnd(slower)
    compress(settings(**others), shipped_as_here(), out, listener or Listener(), resume=resume, bench=bench)
    return json.loads((out / "report.json").read_text()), bench


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def phases(out: Path) -> list[str]:
    return list(dict.fromkeys(pd.read_csv(out / "history.csv")["phase"]))


def test_a_network_that_misses_when_it_is_finished_loses_more_and_meets_its_target(tmp_path: Path) -> None:
    listener = Listener()
    report, bench = run(tmp_path / "run", 1.08, listener)
    chosen = [turn for turn in report["turns"] if not turn["finished"]]
    missed, met = (turn for turn in report["turns"] if turn["finished"])
    assert chosen[-1]["measured_us"] <= chosen[-1]["allowed_us"]
    assert missed["measured_us"] > missed["allowed_us"]
    assert missed["measured_us"] == pytest.approx(1.08 * chosen[-1]["measured_us"], rel=0.01)
    assert met["predicted_us"] <= met["limit_us"] < missed["predicted_us"]
    assert report["target_met"]
    assert met["measured_us"] == pytest.approx(report["slim"]["latency_us"]["median"], abs=0.01)
    assert met["measured_us"] <= met["allowed_us"]
    assert report["groups"]["budget"] == met["limit_us"]
    assert report["correction"].keys() == {"factor", "overhead_us", "held_mib", "spilled_us"}
    assert report["correction"]["factor"] > 0
    assert bench.finished == 2 + 1  # a miss is looked at twice
    assert phases(tmp_path / "run") == ["dense", "prune", "correct1"]
    assert "1 epochs dense and 1 pruned, and 1 more" in (tmp_path / "run" / "report.html").read_text()
    assert report["max_abs_difference"]["torch"] < 1e-5
    assert sum("more was taken out, and what is left is trained" in line for line in listener.lines) == 1
    page = (tmp_path / "run" / "report.html").read_text()
    assert "finished" in page


def test_a_network_that_meets_its_target_is_left_alone(tmp_path: Path) -> None:
    report, bench = run(tmp_path / "run", 1.0)
    assert not any(turn["finished"] for turn in report["turns"])
    assert bench.finished == 1
    assert phases(tmp_path / "run") == ["dense", "prune"]


def test_the_same_run_again_comes_to_the_same_network_without_timing_the_miss(tmp_path: Path) -> None:
    first, _bench = run(tmp_path / "first", 1.08)
    again, bench = run(tmp_path / "again", 1.08)
    assert bench.finished == 1
    assert [turn["reused"] for turn in again["turns"] if turn["finished"]] == [True, False]
    assert again["layers"] == first["layers"]
    weights = [load_file(tmp_path / name / "slim" / "model.safetensors") for name in ("first", "again")]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])


def test_a_network_that_met_its_target_once_is_not_corrected_for_a_noisy_timing(tmp_path: Path) -> None:
    first, _bench = run(tmp_path / "first", 1.0)
    again, bench = run(tmp_path / "again", 1.08)
    assert first["target_met"]
    assert not again["target_met"]
    assert bench.finished == 2
    assert again["layers"] == first["layers"]
    assert phases(tmp_path / "again") == ["dense", "prune"]


def test_a_miss_that_the_corrected_network_does_not_bear_out_is_forgotten(tmp_path: Path) -> None:
    """The slim network was disturbed, the dense one was not: another run shall not be misled by it."""

    class SlowAtFirst(SlowInTheEnd):
        def time(self, paths: Mapping[str, Path], *arguments: object) -> dict[str, Timing]:
            self.slower = 1.3 if self.finished < 2 else 1.0
            return super().time(paths, *arguments)

    bench = SlowAtFirst(1.0)
    compress(settings(), shipped_as_here(), tmp_path / "run", Listener(), resume=False, bench=bench)
    again, _bench = run(tmp_path / "again", 1.0)
    assert again["target_met"]
    assert not any(turn["reused"] or turn["finished"] for turn in again["turns"])
    assert phases(tmp_path / "again") == ["dense", "prune"]


def test_a_correction_that_was_interrupted_goes_on_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "whole", 1.08)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", 1.08, Listener("correct1"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a-third"))  # nothing is known but by the checkpoint
    report, bench = run(tmp_path / "parts", 1.08, resume=True)
    assert report["target_met"]
    assert bench.finished == 1  # what was missed is not timed again
    assert [turn["finished"] for turn in report["turns"]][-2:] == [True, True]
    weights = [load_file(tmp_path / name / "slim" / "model.safetensors") for name in ("whole", "parts")]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])


def test_corrections_come_to_an_end_and_the_miss_is_told(tmp_path: Path) -> None:
    """The slim network takes ever longer, as one does that has a part which no pruning makes faster."""

    class EverSlower(SlowInTheEnd):
        def time(self, paths: Mapping[str, Path], *arguments: object) -> dict[str, Timing]:
            self.slower = 1.2 ** (self.finished + 1)
            return super().time(paths, *arguments)

    bench = EverSlower(1.0)
    compress(settings(), shipped_as_here(), tmp_path / "run", Listener(), resume=False, bench=bench)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert not report["target_met"]
    assert bench.finished == 2 * (len(CORRECTIONS) + 1)
    assert phases(tmp_path / "run") == ["dense", "prune", *CORRECTIONS]
    assert (
        f"finished and timed {len(CORRECTIONS) + 1} times" in (tmp_path / "run" / "report.html").read_text()
    )


def test_what_nothing_is_left_of_is_delivered_as_it_is(tmp_path: Path) -> None:
    listener = Listener()
    report, bench = run(tmp_path / "run", 30.0, listener)
    assert not report["target_met"]
    assert bench.finished == 2
    assert [turn["finished"] for turn in report["turns"]][-1]
    assert phases(tmp_path / "run") == ["dense", "prune"]
    assert any("nothing is left to take out" in line for line in listener.lines)


def test_a_loop_of_ones_own_corrects_with_an_optimizer_of_its_own() -> None:
    model = make_model("resnet8", in_channels=1, image_size=8, classes=4, seed=0)
    images = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    profile = shipped_as_here()
    bench = SlowInTheEnd(1.0)
    job = hwprune.Compressor(model, images[:2], profile, Speedup(1.5), total_steps=2, bench=bench)

    def train() -> None:
        optimizer = job.wrap(torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9))
        for _ in range(2):
            optimizer.zero_grad()
            model(images).square().mean().backward()
            optimizer.step()

    train()
    before = job.finish().report
    slim_us = 1.1 * DENSE_US / 1.5
    timings = {name: Timing(us, us, us, 9) for name, us in (("dense", DENSE_US), ("slim", slim_us))}
    turn = job.judged(timings)
    assert turn is not None
    assert turn.part == pytest.approx(1.1)
    with pytest.raises(InputError, match="already wrapped"):
        train()
    job.correct(turn, images)
    train()
    after = job.finish().report
    assert after.groups["kept"] < before.groups["kept"]
    assert after.predicted_us["slim"] <= turn.corrected_us
    assert [each.finished for each in after.turns][-1]
    assert job.known() is None  # of the smaller network nobody knows yet


def test_single_weights_are_not_corrected() -> None:
    model = make_model("resnet8", in_channels=1, image_size=8, classes=4, seed=0)
    job = hwprune.Compressor(
        model, torch.randn(2, 1, 8, 8), shipped_as_here(), Keep(0.5),
        total_steps=2, granularity="weight", measure=False,
    )  # fmt: skip
    assert job.judged({}) is None
    assert job.known() is None
    with pytest.raises(InputError, match="only networks that lose channels"):
        job.correct(Turn(1.0, 1.0, 2.0, 1.0))
