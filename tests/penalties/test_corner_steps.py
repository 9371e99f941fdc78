"""The exact form at strengths whose objective is not convex: a corner of the openings is a minimiser."""

from __future__ import annotations

import itertools

import pytest
import torch
from envelope_cases import EXAMPLES, Case, cases, holds, objective, positive
from hypothesis import strategies as st

from hwprune.penalties import GroupEnvelope

both_types = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


@st.composite
def steep_cases(draw: st.DrawFn) -> Case:
    """Unit cost, whole and fractional budgets, and ``L a_j >= 1`` for every group."""
    case = draw(st.one_of(cases(unit_cost=True), cases(unit_cost=True, whole_budget=True)))
    strength = draw(st.sampled_from([1.0, 1.5, 30.0, 1e6])) * draw(positive(1.0, 2.0))
    # A little more: a quotient and its product with the divisor can come out below.
    steep = strength / float(case.ridge.min()) * (1 + 1e-12)
    return Case(case.norms, case.ridge, case.cost, case.budget, steep)


def corners(case):
    """The factors of every corner of ``0 <= u <= 1, sum u <= B``."""
    groups, whole = case.norms.numel(), min(int(case.budget), case.norms.numel())
    rest, pull = min(case.budget - whole, 1.0), case.strength * case.ridge
    for kept in itertools.combinations(range(groups), whole):
        for partial in set(range(groups)) - set(kept) or {None}:
            opened = torch.zeros(groups, dtype=torch.float64)
            opened[list(kept)] = 1.0
            if partial is not None:
                opened[partial] = rest
            yield opened / (opened + pull * (1 - opened))


@pytest.mark.parametrize("examples", EXAMPLES)
def test_no_corner_and_no_random_rival_is_better(examples):
    generator = torch.Generator().manual_seed(0)

    def check(case: Case) -> None:
        found = case.envelope(debias=True).prox_factors(case.norms, case.strength)
        # What the value loses to rounding is multiplied by the strength.
        rounding = 1e-12 * case.quadratic * (1 + case.strength)
        reached = objective(case, found * case.norms, debias=True)
        rivals = list(corners(case)) + list(torch.rand(20, case.norms.numel(), generator=generator).double())
        for rival in rivals:
            assert reached <= objective(case, rival * case.norms, debias=True) + rounding

    holds(steep_cases(), examples, check)


@both_types
@pytest.mark.parametrize("strength", [1.0, 1000.0, 1e30])
@pytest.mark.parametrize("cost", [None, torch.full((4,), 0.1, dtype=torch.float64)], ids=["unit", "equal"])
def test_of_ties_the_first_stay_whole(dtype, strength, cost):
    envelope = GroupEnvelope(2 if cost is None else 0.2, cost=cost)
    factors = envelope.prox_factors(torch.full((4,), 2.0, dtype=dtype), strength)
    assert factors.tolist() == [1.0, 1.0, 0.0, 0.0]


@both_types
def test_the_last_group_has_what_is_left_of_the_budget(dtype):
    norms = torch.tensor([1.0, 3.0, 2.0, 2.0], dtype=dtype)
    factors = GroupEnvelope(1.5).prox_factors(norms, 3.0)
    torch.testing.assert_close(factors, torch.tensor([0.0, 1.0, 0.25, 0.0], dtype=dtype))


@both_types
def test_rows_of_gentle_and_steep_strengths_are_steps_of_their_own(dtype):
    norms = torch.rand(3, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    norms[2] = 1.0
    strengths, budgets = torch.tensor([0.3, 2.0, 50.0]), torch.tensor([2.0, 1.5, 3.0])
    ridge = torch.tensor([1.0, 2.0, 1.5, 1.0, 3.0])
    found = GroupEnvelope(budgets, ridge).solve(norms, strengths, out=norms.clone()).factors
    for row, strength, budget, factors in zip(norms, strengths, budgets, found, strict=True):
        alone = GroupEnvelope(float(budget), ridge).prox_factors(row, float(strength))
        torch.testing.assert_close(factors, alone)
    assert found[2].tolist() == [1.0, 1.0, 1.0, 0.0, 0.0]
    written_over = norms.clone()
    assert torch.equal(
        GroupEnvelope(budgets, ridge).solve(written_over, strengths, out=written_over).factors, found
    )


@pytest.mark.parametrize("examples", EXAMPLES)
def test_with_unequal_costs_groups_open_in_the_order_of_what_they_give(examples):
    def check(case: Case) -> None:
        found = case.envelope(debias=True).prox_factors(case.norms, case.strength)
        worth = (case.norms / case.cost.sqrt()).tolist()
        ranked = sorted(range(len(worth)), key=lambda group: -worth[group])
        left = case.budget
        for group, after in zip(ranked, [*ranked[1:], None], strict=True):
            fits = min(1.0, max(0.0, left / float(case.cost[group])))
            left -= float(case.cost[group])
            # Near ties may share what is left.
            tied = after is not None and worth[group] - worth[after] < 1e-6 * worth[group]
            if tied or worth[group] == 0:
                return
            pull = min(case.strength * float(case.ridge[group]), 1.0)
            assert float(found[group]) == pytest.approx(fits / (fits + pull * (1 - fits)), abs=1e-6)

    def is_knapsack(case: Case) -> bool:
        return case.strength * float(case.ridge.min()) >= 1 and bool((case.cost != case.cost[0]).any())

    holds(cases(steep=True).filter(is_knapsack), examples, check)
