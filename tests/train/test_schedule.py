"""How strength and slack follow each other along a training."""

import itertools

import pytest

from hwprune.errors import InputError
from hwprune.groups.base import Terms
from hwprune.train.schedule import StrengthSchedule

SCHEDULES = {
    "whole": StrengthSchedule(1000),
    "trained": StrengthSchedule.from_trained(1000, pull=True),
    "at once": StrengthSchedule.from_trained(1000),
    "short": StrengthSchedule(3),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_slack_falls_from_everything_to_nothing_before_the_support_settles(name):
    schedule = SCHEDULES[name]
    slacks = [schedule.slack(step) for step in range(schedule.total_steps + 1)]
    assert all(later <= earlier for earlier, later in itertools.pairwise(slacks))
    assert slacks[0] == 1
    assert slacks[schedule.settle_step] == 0


def test_there_is_slack_while_the_strength_grows_and_a_while_after():
    schedule = SCHEDULES["whole"]
    assert schedule.slack(100) == 1
    assert 0 < schedule.slack(450) < schedule.slack(400) < 0.05
    assert schedule.slack(500) == 0


def test_only_budgets_with_a_whole_come_down():
    assert Terms(20.0, None, whole=100.0).at(1.0).budget == 100
    assert Terms(20.0, None, whole=100.0).at(0.0).budget == 20
    assert Terms(20.0, None, whole=10.0).at(0.5).budget == 20
    assert Terms(20.0, None).at(1.0).budget == 20


@pytest.mark.parametrize(
    "wrong",
    [
        {"total_steps": 2.5},
        {"total_steps": float("nan")},
        {"total_steps": "100"},
        {"total_steps": 0},
        {"peak": -1.0},
        {"peak": float("nan")},
        {"peak": float("inf")},
        {"peak": "0.1"},
        {"settle": float("nan")},
        {"start": "0"},
    ],
)
def test_numbers_that_are_no_schedule_are_refused_at_once(wrong):
    with pytest.raises(InputError):
        StrengthSchedule(**{"total_steps": 100, **wrong})


@pytest.mark.parametrize(("steps", "plateau"), [(40, 0.25), (1000, 12 / 350), (1_000_000, 0.01)])
def test_the_strength_is_zero_then_a_line_then_level_and_adds_up_to_twelve(steps, plateau):
    schedule = StrengthSchedule(steps)
    start, full = steps // 10, steps * 4 // 10
    assert schedule.strength(start) == 0
    assert schedule.strength((start + full) // 2) == pytest.approx(plateau / 2)
    assert schedule.strength(full) == schedule.strength(steps) == pytest.approx(plateau)
    if steps == 1000:
        total = sum(schedule.strength(step) for step in range(1, schedule.settle_step + 1))
        assert total == pytest.approx(12, rel=0.01)
