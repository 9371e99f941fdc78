"""Groups that open alike take a faster way; it must end where the general one does."""

from __future__ import annotations

import pytest
import torch
from envelope_cases import EXAMPLES, Case, cases, factors_by_sorting, holds

from hwprune.penalties import GroupEnvelope

both_forms = pytest.mark.parametrize("debias", [True, False], ids=["exact", "plain"])


def solved_both_ways(norms, budget, strength, debias):
    """Factors with one threshold for all, and in float64 with a weight for each."""
    alike = GroupEnvelope(budget, debias=debias).prox_factors(norms, strength)
    ones = torch.ones(norms.shape[-1], dtype=torch.float64)
    return alike, GroupEnvelope(budget, ones, ones, debias=debias).prox_factors(norms.double(), strength)


@pytest.mark.parametrize("examples", EXAMPLES)
@both_forms
def test_one_threshold_for_all_gives_the_factors_from_sorted_breakpoints(examples, debias):
    def check(case: Case) -> None:
        norms, ones = case.norms.float(), torch.ones_like(case.norms)
        strength = min(case.strength, 0.45)
        same = Case(norms.double(), ones, ones, case.budget, strength)
        found = GroupEnvelope(case.budget, debias=debias).prox_factors(norms, strength)
        expected = factors_by_sorting(same, debias=debias)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=4e-7)

    holds(cases(unit_cost=True), examples, check)


@both_forms
@pytest.mark.parametrize("strength", [1e-30, 0.02, 0.49])
@pytest.mark.parametrize("share", [0.0, 1e-6, 0.3, 0.999, 1.0, float("inf")])
def test_many_groups_from_any_start(debias, strength, share):
    groups = 600_000
    norms = torch.randn(groups, generator=torch.Generator().manual_seed(0)).exp()
    norms[::7] = 0.0
    alike, each = solved_both_ways(norms, share * groups, strength, debias)
    torch.testing.assert_close(alike.double(), each, rtol=0, atol=4e-7)
    envelope = GroupEnvelope(share * groups, debias=debias)
    cold = envelope.solve(norms, strength)
    for start in (cold.root, 1.01 * cold.root, 0 * cold.root, cold.root * 1e12 + 1e12):
        warm = envelope.solve(norms, strength, start, out=norms.clone())
        torch.testing.assert_close(warm.factors, cold.factors, rtol=0, atol=4e-7)


@both_forms
@pytest.mark.parametrize(
    "norms", [[0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [3.0, 2.0, 1e-6, 1e-7], [1e-20, 1.0], [5.0]]
)
@pytest.mark.parametrize("budget", [0, 0.5, 1, 2, 3, 4])
def test_corners(debias, norms, budget):
    alike, each = solved_both_ways(torch.tensor(norms), budget, 0.1, debias)
    torch.testing.assert_close(alike.double(), each, rtol=0, atol=4e-7)


def test_survivors_of_the_exact_form_are_not_touched():
    norms = torch.randn(300_000, generator=torch.Generator().manual_seed(1)).exp()
    factors = GroupEnvelope(100_000).prox_factors(norms, 0.2)
    strongest = norms.topk(20_000).indices
    assert (factors[strongest] == 1).all()
    assert ((factors >= 0) & (factors <= 1)).all()


def test_a_root_starts_a_step_with_other_weights():
    norms = torch.randn(1000, generator=torch.Generator().manual_seed(2)).exp()
    fast = GroupEnvelope(300.0).solve(norms, 0.1)
    each = GroupEnvelope(300.0, ridge=torch.ones(1000)).solve(norms, 0.1)
    torch.testing.assert_close(fast.root, each.root, rtol=1e-5, atol=0)


@both_forms
@pytest.mark.parametrize("strength", [1e-30, 0.02, 0.49, 0.9])
@pytest.mark.parametrize("shape", [(200, 4), (3, 5, 40), (2, 3000)])
def test_rows_of_float32_that_open_alike_are_a_loop(debias, strength, shape):
    norms = torch.randn(shape, generator=torch.Generator().manual_seed(3)).exp()
    norms[..., 1], norms[..., 2] = 0.0, norms[..., 3]
    norms[0] = 0.0
    envelope = GroupEnvelope(shape[-1] / 2, debias=debias)
    batch = envelope.prox_factors(norms, strength).flatten(0, -2)
    loop = torch.stack([envelope.prox_factors(row, strength) for row in norms.flatten(0, -2)])
    torch.testing.assert_close(batch, loop, rtol=0, atol=1e-6)
