"""Budgets in microseconds for single weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hwprune.errors import TargetError
from hwprune.groups import densities
from hwprune.groups.costs import LatencyBudget, Widths
from hwprune.groups.densities import DensityAllowance, Ladder, fit_counts, ladder, price_weights
from hwprune.groups.flat import find_layers
from hwprune.groups.weight import WeightGroups

SIZES = np.array([1000, 4000])
#: Microseconds per weight of the two layers.
PRICES = np.array([0.1, 0.02])


def straight(counts: Widths) -> np.ndarray:
    return 5.0 + counts @ PRICES


def stepped(counts: Widths) -> np.ndarray:
    """The first layer runs a sparse kernel, in a tenth of the time, below a fifth of its weights."""
    first = np.where(counts[..., 0] < 200, 10.0, 100.0)
    return 5.0 + first + 0.02 * counts[..., 1]


def ladders(seed: int = 0) -> list[Ladder]:
    scores = torch.rand(5000, generator=torch.Generator().manual_seed(seed))
    return [ladder(scores[:1000], 1000, 20), ladder(scores[1000:], 4000, 80)]


@pytest.mark.parametrize("limit", [150.0, 100.0, 40.0, 10.0])
def test_counts_fit_the_budget_and_use_it(limit: float) -> None:
    counts = fit_counts(LatencyBudget(straight, limit), ladders())
    assert 0.9 * limit < float(straight(counts)) <= limit


def test_of_equal_weights_the_dear_ones_leave_first() -> None:
    same = torch.ones(1000)
    counts = fit_counts(
        LatencyBudget(straight, 100.0), [ladder(same, 1000, 20), ladder(torch.ones(4000), 4000, 80)]
    )
    assert counts[0] / 1000 < counts[1] / 4000


def test_a_step_of_the_latency_is_taken_as_a_whole_or_not_at_all() -> None:
    loose = fit_counts(LatencyBudget(stepped, 170.0), ladders())
    tight = fit_counts(LatencyBudget(stepped, 60.0), ladders())
    assert loose[0] == 1000
    assert 150 < tight[0] < 200
    assert float(stepped(tight)) <= 60.0


def test_a_step_that_rounding_puts_out_of_the_room_is_still_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(densities, "_knapsack", lambda _room, spent, _losses: [0] * len(spent))
    limit = float(np.nextafter(straight(SIZES), 0.0))
    assert fit_counts(LatencyBudget(straight, limit), ladders()).tolist() == SIZES.tolist()


def test_what_cannot_be_reached_is_told_with_what_can() -> None:
    with pytest.raises(TargetError, match=r"at least 8\.6 us"):
        fit_counts(LatencyBudget(straight, 8.0), ladders())


def test_the_price_of_a_weight_is_what_the_layer_saves_by_it() -> None:
    np.testing.assert_allclose(price_weights(LatencyBudget(straight, 1.0), SIZES), PRICES)
    # Behind the step every weight of the first layer has its part in what the step saves.
    assert price_weights(LatencyBudget(stepped, 1.0), SIZES)[0] == pytest.approx(90.0 / 900)


def test_an_allowance_is_priced_and_settled_in_microseconds() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 50, bias=False), torch.nn.Linear(50, 80, bias=False))
    groups = WeightGroups(model)
    assert [layer.tensor.numel() for layer in find_layers(model)[0]] == SIZES.tolist()
    allowance = DensityAllowance(groups, LatencyBudget(straight, 60.0), np.array([20, 80]))
    alive = torch.ones(groups.member_count, dtype=torch.bool)
    norms = groups.member_norms()
    terms = allowance.terms(groups.bundle(norms, alive), alive)
    assert terms.cost is not None
    assert float(terms.cost.mean()) == pytest.approx(1.0)
    assert float(terms.cost[0] / terms.cost[-1]) == pytest.approx(5.0)
    # All weights cost 180 us, and the network 185 us: 60 us leave 55 for weights.
    assert terms.budget / float(terms.cost.sum()) == pytest.approx(55.0 / 180.0)
    kept = allowance.survivors(norms, alive)
    counts = allowance.counts(kept)
    assert 54.0 < float(straight(counts)) <= 60.0
    weights = groups.member_norms()[:1000]
    assert float(weights[kept[:1000]].min()) >= float(weights[~kept[:1000]].max())
