"""Timing again while something disturbs the machine."""

import math

import pytest

from hwprune.runtime import patience
from hwprune.runtime.patience import LEAST_SECONDS, MOST_SECONDS, SHARE, Patience
from hwprune.runtime.timing import Timing

#: Seconds that one timing takes.
TAKES = 10.0


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """As patient as for users; other tests do not wait."""
    monkeypatch.setattr(patience, "LEAST_SECONDS", LEAST_SECONDS)
    monkeypatch.setattr(patience, "SHARE", SHARE)


class Machine:
    """A clock that goes on while somebody sleeps or measures, and a dense network that takes what is told."""

    def __init__(self, *dense_us: float) -> None:
        self.now, self.pauses, self.told = 0.0, list[float](), list[str]()
        self._dense_us, self.measured = dense_us, 0
        self.patience = Patience(self.told.append, clock=lambda: self.now, sleep=self._sleep)
        self.patience.know(100.0)

    def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def measure(self) -> dict[str, Timing]:
        self.now += TAKES
        dense_us = self._dense_us[min(self.measured, len(self._dense_us) - 1)]
        self.measured += 1
        # The slower the dense network, the faster the slim one: nothing to choose by.
        slim = Timing(200.0 - dense_us, 1.0, 300.0, 9)
        return {"dense": Timing(dense_us, dense_us, dense_us, 9), "slim": slim}


@pytest.mark.parametrize(
    ("dense_us", "pauses", "counted"),
    [
        ((101.0,), [], 101.0),
        ((104.9,), [], 104.9),
        ((115.0, 100.0), [5.0], 100.0),
        ((115.0, 125.0, 104.0), [5.0, 10.0], 104.0),
    ],
)
def test_it_is_timed_again_until_the_dense_network_takes_what_it_took(
    dense_us: tuple[float, ...], pauses: list[float], counted: float
) -> None:
    machine = Machine(*dense_us)
    found = machine.patience.least_disturbed(machine.measure)
    assert (machine.measured, machine.pauses) == (len(dense_us), pauses)
    assert (found["dense"].median_us, found["slim"].median_us) == (counted, 200.0 - counted)
    assert [f"again in {pause:.0f} s" in line for pause, line in zip(pauses, machine.told, strict=True)] == [
        True
    ] * len(pauses)


def test_it_is_timed_once_where_nothing_was_measured_before() -> None:
    machine = Machine(1e6)
    machine.patience.usual_us = math.inf
    assert machine.patience.least_disturbed(machine.measure)["dense"].median_us == 1e6
    assert (machine.measured, machine.told) == (1, [])


def test_where_it_does_not_end_the_least_disturbed_timing_counts() -> None:
    machine = Machine(115.0, 106.0, 130.0)
    found = machine.patience.least_disturbed(machine.measure)
    assert found["dense"].median_us == 106.0
    assert machine.pauses == [5.0, 10.0]  # and 20 s and a timing after them would be too long
    assert machine.patience.spent == pytest.approx(5.0 + 10.0 + 2 * TAKES)
    assert machine.patience.spent <= LEAST_SECONDS
    assert "the least disturbed timing counts, with 106.0 us" in machine.told[-1]
    machine.patience.least_disturbed(machine.measure)  # nothing is left for the timings after it
    assert machine.pauses == [5.0, 10.0]


def test_the_least_that_the_dense_network_took_is_what_it_usually_takes() -> None:
    machine = Machine(95.0, 99.0, 100.0, 95.0)
    machine.patience.least_disturbed(machine.measure)
    assert machine.patience.usual_us == 95.0
    machine.patience.least_disturbed(machine.measure)  # 99: within a twentieth
    assert machine.pauses == []
    machine.patience.least_disturbed(machine.measure)  # 100 is beyond it
    assert machine.pauses == [5.0]


@pytest.mark.parametrize(("gone_by", "allowed"), [(600.0, SHARE * 600.0), (36_000.0, MOST_SECONDS)])
def test_a_long_training_is_worth_a_longer_wait(gone_by: float, allowed: float) -> None:
    machine = Machine(115.0)
    machine.now = gone_by
    machine.patience.least_disturbed(machine.measure)
    # The longest pause that still fits is made, and the next would not have fitted.
    assert LEAST_SECONDS < machine.patience.spent <= min(SHARE * machine.now, MOST_SECONDS)
    assert machine.patience.spent + 2 * machine.pauses[-1] + TAKES > allowed
