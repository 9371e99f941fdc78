"""What is told of a network that is faster than was asked for, or too slow."""

from __future__ import annotations

from typing import Any

import pytest

from hwprune.closed_loop import MAX_TURNS
from hwprune.outcome import guessing_line, shortfall_line, surplus_line

WASTEFUL = {"limit_us": 30.0, "predicted_us": 30.0, "measured_us": 24.0, "allowed_us": 32.0}
SLOW = {"limit_us": 31.0, "predicted_us": 31.0, "measured_us": 33.0, "allowed_us": 32.0}
ABOUT_RIGHT = {**WASTEFUL, "measured_us": 31.0}


def record(turns: list[dict[str, float]], **other: Any) -> dict[str, Any]:
    return {
        "target": {"kind": "speedup", "value": 3.0},
        "speedup": 3.52,
        "slim": {"latency_us": {"median": 50.0}},
        "groups": {"kept": 5, "total": 12, "budget": 30.0},
        "turns": turns,
        **other,
    }


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        (
            [SLOW, WASTEFUL],
            ": no network that is safely fast enough was found between it and those that are too slow",
        ),
        ([WASTEFUL], ": what was left when the survivors were chosen is that fast"),
        ([SLOW] * (MAX_TURNS - 1) + [WASTEFUL], f": the {MAX_TURNS} turns on the device were used up"),
        ([SLOW, ABOUT_RIGHT], ": when it was chosen, it took 97% of what was allowed"),
        ([], ""),
    ],
)
def test_the_reason_is_told_where_the_turns_know_it(turns: list[dict[str, float]], reason: str) -> None:
    assert surplus_line(record(turns)) == f"1.17 times as fast as was asked for{reason}"


def test_a_network_that_had_to_lose_nothing_is_told_as_such() -> None:
    whole = {"kept": 12, "total": 12, "budget": 30.0}
    line = surplus_line(record([WASTEFUL], groups=whole, target={"kind": "latency_us", "value": 100.0}))
    assert line == "2.00 times as fast as was asked for: the dense network is fast enough"


def test_nothing_is_told_of_a_target_about_met_or_a_number_of_groups() -> None:
    assert surplus_line(record([ABOUT_RIGHT], speedup=3.4)) is None
    assert surplus_line(record([], target={"kind": "keep", "value": 0.3})) is None


CLOSE = {**SLOW, "limit_us": 30.0, "measured_us": 32.5}
SAFE = {**CLOSE, "measured_us": 31.5}


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        (
            [SLOW, CLOSE],
            "; the fastest of 2 networks tried took 32.5 us of 32.0 us allowed, and nothing faster was left "
            "to choose",
        ),
        (
            [CLOSE],
            "; the only network tried took 32.5 us of 32.0 us allowed, and nothing faster was left to choose",
        ),
        (
            [SLOW] * (MAX_TURNS - 1) + [CLOSE],
            f"; the fastest of {MAX_TURNS} networks tried took 32.5 us of 32.0 us allowed, and the "
            f"{MAX_TURNS} turns on the device were used up",
        ),
        (
            [SLOW, SAFE],
            "; when it was chosen, it took 31.5 us of 32.0 us allowed: the final measurement came out slower",
        ),
        ([], ""),
    ],
)
def test_a_miss_is_told_with_the_reason_that_the_turns_know(
    turns: list[dict[str, float]], reason: str
) -> None:
    line = shortfall_line(record(turns, speedup=2.978, target_met=False))
    assert line == f"measured speed-up 2.978 where 3 was asked for{reason}"


def test_a_miss_is_told_in_what_was_asked_for() -> None:
    latency = record([], target={"kind": "latency_us", "value": 49.9}, target_met=False)
    assert shortfall_line(latency) == "measured latency 50.00 us where 49.9 us was asked for"
    assert shortfall_line({**latency, "target_met": True}) is None


@pytest.mark.parametrize(
    ("classes", "dense", "slim", "told"),
    [
        (10, 0.88, 0.10, True),
        (10, 0.88, 0.17, True),
        (10, 0.88, 0.19, False),
        (10, 0.09, 0.09, False),  # the dense one guesses too
        (2, 0.9, 0.53, True),
        (2, 0.9, 0.6, False),
        (None, 0.9, 0.0, False),  # of an older report
    ],
)
def test_a_network_that_only_guesses_is_told(
    classes: int | None, dense: float, slim: float, told: bool
) -> None:
    line = guessing_line(record([], classes=classes, dense={"accuracy": dense}, slim={"accuracy": slim}))
    assert bool(line) is told
    if line is not None:
        assert f"right in {slim:.2%}" in line
        assert f"guessing among {classes} classes" in line
