import re

import numpy as np
import pytest

from hwprune.errors import TargetError
from hwprune.groups.costs import (
    CountBudget,
    LatencyBudget,
    check_count,
    limit_within_reach,
    narrower,
    price,
)
from hwprune.groups.least_loss import fit
from hwprune.groups.widths import losses_of_shares

ALIGNS = np.array([8, 8])
DENSE = np.array([32, 64])


def staircase(widths):
    """Two coupled layers that cost a block of 16 channels at a time."""
    blocks = np.ceil(np.asarray(widths) / 16)
    return blocks[..., 0] * 5 + blocks[..., 0] * blocks[..., 1]


def losses():
    return [losses_of_shares(np.linspace(1, 0.1, groups)) for groups in (4, 8)]


def test_fit_meets_the_budget_and_wastes_less_than_one_step():
    budget = LatencyBudget(staircase, 15.0)
    widths = fit(budget, losses(), DENSE, ALIGNS)
    assert budget.used(widths) <= 15.0
    wider = [np.minimum(widths + ALIGNS * np.eye(2, dtype=int)[axis], DENSE) for axis in range(2)]
    for candidate, axis in zip(wider, range(2), strict=True):
        assert budget.used(candidate) > 15.0 or candidate[axis] == widths[axis]


def test_a_step_that_frees_nothing_follows_the_next():
    prices = price(LatencyBudget(staircase, 1.0), DENSE, ALIGNS)
    # One group of 8 frees nothing on a staircase of 16; the price looks past it.
    assert staircase(narrower(DENSE, ALIGNS, 1)[0]) < staircase(DENSE) or prices.per_axis[0] > 1


def test_excess_is_what_the_network_is_over_its_budget():
    assert price(LatencyBudget(staircase, 10.0), DENSE, ALIGNS).excess == staircase(DENSE) - 10.0


@pytest.mark.parametrize("limit", [2, 3, 7, 12])
def test_a_count_is_met_exactly(limit):
    widths = fit(CountBudget(ALIGNS, limit), losses(), DENSE, ALIGNS)
    assert np.ceil(widths / ALIGNS).sum() == limit


def test_weakest_groups_leave_first_at_equal_cost():
    strong, weak = np.array([1.0, 0.9, 0.8, 0.7]), np.full(8, 0.01)
    widths = fit(CountBudget(ALIGNS, 5), [losses_of_shares(strong), losses_of_shares(weak)], DENSE, ALIGNS)
    assert widths.tolist() == [32, 8]


def test_no_layer_becomes_a_bottleneck_while_another_has_much_left():
    ones, dense = np.ones(2, dtype=np.int64), np.array([8, 8])
    # Equal groups; those of the first axis save three times as much. What is left goes by shares, 2 to 6,
    # where losses that do not grow would leave 1 to 8.
    budget = LatencyBudget(lambda widths: np.asarray(widths) @ np.array([3.0, 1.0]), 12.0)
    assert fit(budget, [losses_of_shares(np.ones(8))] * 2, dense, ones).tolist() == [2, 6]


def test_an_unreachable_budget_says_what_can_be_reached():
    with pytest.raises(TargetError, match="at least"):
        fit(CountBudget(ALIGNS, 1), losses(), DENSE, ALIGNS)


@pytest.mark.parametrize("least_us", [48.5, 33.3, 7.77, 98.0, 99.9])
def test_what_the_message_gives_can_be_asked_for(least_us):
    with pytest.raises(TargetError) as caught:
        limit_within_reach(least_us * 0.99, 100.0, least_us, "one group per axis")
    told = re.search(r"at least ([\d.]+) us, ([\d.]+) times faster than dense", str(caught.value))
    latency_us, factor = float(told[1]), float(told[2])
    for allowed_us in (latency_us, 100.0 / factor):
        assert limit_within_reach(allowed_us, 100.0, least_us, "") >= least_us
    # And not much more could have been.
    assert latency_us == pytest.approx(min(least_us / 0.97, 100.0), abs=0.11)


def test_a_target_in_reach_only_without_the_margin_is_told_at_once():
    with pytest.raises(TargetError):
        limit_within_reach(50.0, 100.0, 49.0, "one group per axis")


def test_a_number_of_groups_out_of_reach_is_told_as_a_number_and_a_fraction():
    with pytest.raises(TargetError, match=r"at least 2 of 12 groups, a fraction of 0\.167 \(one") as caught:
        check_count(CountBudget(ALIGNS, 1), ALIGNS, DENSE)
    assert "faster" not in str(caught.value)
    check_count(CountBudget(ALIGNS, int(0.167 * 12 + 1e-9)), ALIGNS, DENSE)
