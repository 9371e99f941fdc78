"""What counts of networks that were timed in alternation, on a clock that the tests move."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest

from hwprune.runtime import stopwatch
from hwprune.runtime.stopwatch import BLOCK, LEAST_RUNS, Run, calm, sample
from hwprune.runtime.timing import timings_of

#: What two networks take when nothing disturbs them, in microseconds.
ALONE = {"dense": 200.0, "slim": 100.0}


@dataclass
class Clock:
    """Stands in for the module ``time``; running a network moves it."""

    microseconds: float = 0.0

    def perf_counter(self) -> float:
        return self.microseconds / 1e6

    def perf_counter_ns(self) -> float:
        return self.microseconds * 1e3


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(stopwatch, "time", clock)
    monkeypatch.setattr(stopwatch, "MOST_SECONDS", 20.0)
    return clock


def networks(clock: Clock, busy: Callable[[float], bool]) -> dict[str, list[Run]]:
    """Networks that take a percent more or less, and up to twice as long while the machine is busy."""
    generator = np.random.default_rng(0)

    def run(alone: float) -> None:
        slowest = 2.0 if busy(clock.perf_counter()) else 1.01
        clock.microseconds += alone * generator.uniform(0.99, slowest)

    return {name: [partial(run, alone)] for name, alone in ALONE.items()}


def test_a_calm_machine_is_asked_no_longer_than_the_median_needs(clock: Clock) -> None:
    samples = sample(networks(clock, lambda _: False), None)
    assert clock.perf_counter() < 1.0
    assert calm(samples) == samples


def test_what_a_network_takes_to_win_the_caches_back_does_not_count(clock: Clock) -> None:
    """Twice as long in the first run after another network, then less and less, for 15 runs."""
    last, run_since = "", 0

    def run(name: str) -> None:
        nonlocal last, run_since
        run_since = run_since + 1 if name == last else 0
        last = name
        clock.microseconds += ALONE[name] * (1 + max(15 - run_since, 0) / 15)

    samples = sample({name: [partial(run, name)] for name in ALONE}, None)
    assert {name: set(values) for name, values in samples.items()} == {
        name: {alone} for name, alone in ALONE.items()
    }


def test_networks_that_take_long_are_not_run_for_long_before_they_count(clock: Clock) -> None:
    runs = {"dense": 0, "slim": 0}

    def run(name: str) -> None:
        runs[name] += 1
        clock.microseconds += 1e5

    samples = sample({name: [partial(run, name)] for name in runs}, 2 * BLOCK)
    assert {name: len(values) for name, values in samples.items()} == {"dense": 2 * BLOCK, "slim": 2 * BLOCK}
    assert runs == dict.fromkeys(runs, stopwatch.WARMUP_RUNS + 2 * (1 + BLOCK))


def test_what_slows_down_one_network_more_than_the_other_is_waited_out(clock: Clock) -> None:
    # Busy for six seconds of eight, at the start, too.
    samples = sample(networks(clock, lambda now: now % 8 < 6), None)
    assert clock.perf_counter() > 6
    timings = timings_of(samples, {name: {} for name in samples}, None)
    for name, timing in timings.items():
        assert timing.median_us == pytest.approx(ALONE[name], rel=0.01)
        assert timing.p90_us < 1.1 * ALONE[name]
        assert timing.environment["runs_set_aside"] == len(samples[name]) - timing.runs > timing.runs


def test_moments_of_rest_do_not_stand_for_a_busy_machine(clock: Clock) -> None:
    samples = sample(networks(clock, lambda now: not 3 < now < 3.3), None)
    assert clock.perf_counter() == pytest.approx(20.0, rel=0.12)
    kept = calm(samples)
    # A fifth of 20 seconds and no more, of which the 0.3 at rest are a small part.
    assert len(kept["dense"]) == len(kept["slim"])
    assert len(kept["dense"]) == pytest.approx(0.2 * len(samples["dense"]), abs=2 * BLOCK)
    assert np.median(kept["dense"]) > 1.2 * ALONE["dense"]


def test_of_a_busy_machine_what_was_disturbed_least_counts() -> None:
    # A neighbour takes more and more: the dense network loses more by it than the slim one.
    load = np.linspace(0.0, 1.0, 100)
    samples = {
        "dense": np.repeat(ALONE["dense"] * (1 + load), BLOCK).tolist(),
        "slim": np.repeat(ALONE["slim"] * (1 + 0.5 * load), BLOCK).tolist(),
    }
    kept = calm(samples)
    assert {name: values == samples[name][: 20 * BLOCK] for name, values in kept.items()} == {
        "dense": True,
        "slim": True,
    }


def test_every_loading_of_a_network_has_its_turn(clock: Clock) -> None:
    """Where weights come to lie changes what a network takes: no loading counts more than the others."""

    def run(alone: float) -> None:
        clock.microseconds += alone

    loadings = [103.0, 100.0, 101.0]
    networks = {name: [partial(run, factor * alone) for factor in loadings] for name, alone in ALONE.items()}
    for runs in (None, 12 * BLOCK):
        samples = sample(networks, runs)
        for name, alone in ALONE.items():
            blocks = np.reshape(samples[name], (-1, BLOCK))
            expected = np.resize(loadings, len(blocks)) * alone
            assert np.array_equal(blocks, np.repeat(expected[:, None], BLOCK, axis=1))


def test_a_single_network_of_several_loadings_wins_the_caches_back(clock: Clock) -> None:
    last, run_since = -1, 0

    def run(loading: int) -> None:
        nonlocal last, run_since
        run_since = run_since + 1 if loading == last else 0
        last = loading
        clock.microseconds += 100.0 * (1 + max(15 - run_since, 0) / 15)

    assert set(sample({"network": [partial(run, 0), partial(run, 1)]}, 4 * BLOCK)["network"]) == {100.0}


def test_a_network_with_a_clock_of_its_own_is_believed() -> None:
    ticks = itertools.count(1)
    samples = sample({"there": [lambda: float(next(ticks))], "here": [lambda: [0.0]]}, 3)
    assert np.diff(samples["there"]).tolist() == [1.0, 1.0]
    assert samples["there"][0] > stopwatch.WARMUP_RUNS  # warmed up like any other
    assert len(samples["here"]) == 3


def test_both_networks_lose_the_same_runs() -> None:
    slow = itertools.cycle([1.0, 1.0, 1.0, 2.0])
    factors = [factor for factor in itertools.islice(slow, 40) for _ in range(BLOCK)]
    marked = {name: [alone * factor for factor in factors] for name, alone in ALONE.items()}
    # Only one of the two shows some of the disturbances.
    marked["slim"] = [ALONE["slim"]] * len(factors)
    kept = calm(marked)
    assert {name: len(values) for name, values in kept.items()} == {"dense": 30 * BLOCK, "slim": 30 * BLOCK}


@pytest.mark.parametrize("runs", [1, BLOCK + 1, 2 * LEAST_RUNS + 1])
def test_as_many_runs_as_were_asked_for_all_count(clock: Clock, runs: int) -> None:
    samples = sample(networks(clock, lambda now: int(now * 100) % 2 == 0), runs)
    timings = timings_of(samples, {name: {} for name in samples}, runs)
    assert {(timing.runs, timing.environment["runs_set_aside"]) for timing in timings.values()} == {(runs, 0)}
