"""Widths with the least loss within a budget."""

import itertools

import numpy as np
import pytest

from hwprune.errors import TargetError
from hwprune.groups.costs import CountBudget, LatencyBudget
from hwprune.groups.least_loss import fit


def convex(rng, groups):
    """Losses that grow ever faster as groups leave."""
    return np.concatenate([np.cumsum(np.sort(rng.uniform(0.01, 1, groups)))[::-1], [0.0]])


def coupled(widths):
    """Layers that cost what their neighbours make of them, in blocks of 16 channels."""
    widths = np.asarray(widths)
    blocks = np.ceil(widths / 16)
    before = np.concatenate([np.full((*widths.shape[:-1], 1), 3.0), widths[..., :-1]], axis=-1)
    return (before * blocks).sum(-1) + 5.0


def brute_force(budget, losses, widths, aligns, fewest=1):
    """The least loss of all widths within the budget."""
    numbers = [range(fewest, len(each)) for each in losses]
    fits = [
        sum(loss[count] for loss, count in zip(losses, counts, strict=True))
        for counts in itertools.product(*numbers)
        if budget.used(np.minimum(np.array(counts) * aligns, widths)) <= budget.limit
    ]
    return min(fits)


def lost(losses, widths, aligns):
    return sum(loss[int(np.ceil(w / a))] for loss, w, a in zip(losses, widths, aligns, strict=True))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("part", [0.2, 0.5, 0.8])
def test_little_is_lost_against_the_best_of_all_widths(seed, part):
    rng = np.random.default_rng(seed)
    aligns, widths = np.array([8, 8, 4]), np.array([48, 40, 22])
    losses = [convex(rng, groups) for groups in (6, 5, 6)]
    budget = LatencyBudget(coupled, part * float(coupled(widths)))
    found = fit(budget, losses, widths, aligns)
    assert budget.used(found) <= budget.limit
    assert ((found % aligns == 0) | (found == widths)).all()
    best = brute_force(budget, losses, widths, aligns)
    assert best - 1e-12 <= lost(losses, found, aligns) <= 1.1 * best + 1e-12


def test_an_exchange_mends_what_greed_took():
    # Greed takes the first axis to its end, as every step there is cheap, and cannot go back; the second
    # would have freed the same at once.
    losses = [np.array([9.0, 3.0, 2.0, 1.0, 0.0]), np.array([9.0, 2.5, 0.0])]
    budget = LatencyBudget(lambda widths: np.asarray(widths) @ np.array([1.0, 3.0]), 7.0)
    widths, ones = np.array([4, 2]), np.ones(2, dtype=np.int64)
    found = fit(budget, losses, widths, ones)
    assert lost(losses, found, ones) == brute_force(budget, losses, widths, ones)


def test_a_single_axis_fills_the_budget():
    losses = [np.array([9.0, 3.0, 2.0, 1.0, 0.0])]
    ones = np.ones(1, dtype=np.int64)
    assert fit(CountBudget(ones, 3), losses, np.array([4]), ones).tolist() == [3]


def test_what_costs_nothing_comes_back():
    # The second axis frees nothing, but has the smallest losses: it must not shrink for that.
    losses = [np.array([9.0, 3.0, 2.0, 1.0, 0.0]), np.array([1e-3, 1e-6, 0.0])]
    budget = LatencyBudget(lambda widths: np.asarray(widths)[..., 0].astype(float), 2.0)
    found = fit(budget, losses, np.array([4, 2]), np.ones(2, dtype=np.int64))
    assert found.tolist() == [2, 2]


def test_branches_may_all_leave():
    losses = [np.array([0.5, 0.0]), np.array([0.1, 0.0])]
    ones = np.ones(2, dtype=np.int64)
    assert fit(CountBudget(ones, 1), losses, ones, ones, fewest=0).tolist() == [1, 0]
    assert fit(CountBudget(ones, 0), losses, ones, ones, fewest=0).tolist() == [0, 0]


def test_a_network_of_a_hundred_axes_is_filled_up():
    rng = np.random.default_rng(0)
    aligns, widths = np.full(100, 8), np.full(100, 128)
    losses = [convex(rng, 16) for _ in range(100)]
    budget = LatencyBudget(coupled, 0.5 * float(coupled(widths)))
    found = fit(budget, losses, widths, aligns)
    room = budget.limit - budget.used(found)
    wider = np.minimum(found + 8 * np.eye(100, dtype=int), widths)
    grown = (wider != found).any(1)
    assert room >= 0
    assert (budget.used(wider)[grown] > budget.limit).all()


def test_where_nothing_saves_anything_the_end_is_told():
    losses = [np.array([9.0, 8.0, 0.0]), np.array([9.0, 8.0, 0.0])]
    ones = np.ones(2, dtype=np.int64)
    with pytest.raises(TargetError, match="as few are left"):
        fit(
            LatencyBudget(lambda widths: np.zeros(np.asarray(widths).shape[:-1]) + 5.0, 4.0),
            losses,
            2 * ones,
            ones,
        )
