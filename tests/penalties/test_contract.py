"""What every registered penalty must do, whatever it is."""

from __future__ import annotations

import math

import pytest
import torch

from hwprune.errors import InputError
from hwprune.penalties import PenaltySettings, make_penalty, penalty_names

every_penalty = pytest.mark.parametrize("name", penalty_names())
GROUPS, BUDGET, STRENGTH = 12, 5, 0.3
#: One step of these only lowers the objective; that of all others reaches its minimum.
MAJORISERS = {"profiled-halo"}


def penalty_of(name, budget=BUDGET):
    return make_penalty(name, PenaltySettings(budget=budget))


def random_norms(*shape, seed=0):
    norms = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
    norms[..., 2], norms[..., 5] = 0.0, norms[..., 6]
    return norms


def objective(penalty, point, norms):
    return (point - norms).square().sum(-1) / 2 + STRENGTH * penalty.value(point)


@every_penalty
def test_it_goes_by_its_name_and_has_a_scale(name):
    penalty = penalty_of(name)
    assert penalty.name == name
    assert 0 < penalty.strength_scale <= 1


@every_penalty
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(GROUPS,), (1, GROUPS), (2, 3, GROUPS)])
def test_shapes_types_and_range(name, dtype, shape):
    penalty, norms = penalty_of(name), random_norms(*shape).to(dtype)
    before = norms.clone()
    factors, value = penalty.prox_factors(norms, STRENGTH), penalty.value(norms)
    assert factors.shape == norms.shape
    assert value.shape == norms.shape[:-1]
    assert factors.dtype == value.dtype == dtype
    assert ((factors >= 0) & (factors <= 1)).all()
    assert (value >= 0).all()
    assert torch.equal(norms, before)


@every_penalty
def test_nothing_is_shrunk_at_strength_zero(name):
    assert (penalty_of(name).prox_factors(random_norms(GROUPS), 0.0) == 1).all()


@every_penalty
def test_zero_has_value_zero_and_stays(name):
    zeros = torch.zeros(GROUPS, dtype=torch.float64)
    penalty = penalty_of(name)
    assert penalty.value(zeros) == 0
    assert torch.isfinite(penalty.prox_factors(zeros, STRENGTH)).all()


@every_penalty
def test_stronger_groups_keep_more_of_themselves(name):
    norms = random_norms(GROUPS).sort().values
    factors = penalty_of(name).prox_factors(norms, STRENGTH)
    assert (factors.diff() >= -1e-12).all()


@every_penalty
def test_the_step_lowers_the_objective(name):
    for seed in range(50):
        norms, penalty = random_norms(GROUPS, seed=seed), penalty_of(name)
        point = penalty.prox_factors(norms, STRENGTH) * norms
        assert objective(penalty, point, norms) <= objective(penalty, norms, norms) + 1e-12


@pytest.mark.parametrize("name", [name for name in penalty_names() if name not in MAJORISERS])
def test_the_step_is_no_worse_than_random_rivals(name):
    generator = torch.Generator().manual_seed(1)
    for seed in range(20):
        norms, penalty = random_norms(GROUPS, seed=seed), penalty_of(name)
        point = penalty.prox_factors(norms, STRENGTH) * norms
        least = objective(penalty, point, norms)
        for spread in (1.0, 0.1, 1e-3):
            noise = spread * torch.randn(40, GROUPS, generator=generator, dtype=torch.float64)
            noise *= torch.rand(40, GROUPS, generator=generator) < 0.5
            rivals = (point + noise).clamp_min(0.0)
            assert (objective(penalty, rivals, norms) >= least - 1e-12).all()


@every_penalty
def test_rows_are_penalties_of_their_own(name):
    rows, strengths = random_norms(4, GROUPS), torch.tensor([0.0, 0.1, 0.3, 0.9], dtype=torch.float64)
    penalty = penalty_of(name)
    factors, values = penalty.prox_factors(rows, strengths), penalty.value(rows)
    for row, strength, of_row, value in zip(rows, strengths, factors, values, strict=True):
        torch.testing.assert_close(penalty.prox_factors(row, float(strength)), of_row)
        torch.testing.assert_close(penalty.value(row), value)


@every_penalty
def test_the_order_of_groups_does_not_matter(name):
    norms = random_norms(GROUPS)
    norms[6] += 0.1  # of ties the first may stay
    order = torch.randperm(GROUPS, generator=torch.Generator().manual_seed(0))
    penalty = penalty_of(name)
    factors = penalty.prox_factors(norms, STRENGTH)
    torch.testing.assert_close(penalty.prox_factors(norms[order], STRENGTH), factors[order])
    torch.testing.assert_close(penalty.value(norms[order]), penalty.value(norms))


@every_penalty
def test_gradient_is_the_finite_difference(name):
    norms = (random_norms(GROUPS) + 0.1).requires_grad_()
    penalty = penalty_of(name)
    value = penalty.value(norms)
    if not value.requires_grad:
        return  # constant wherever it is finite
    (gradient,) = torch.autograd.grad(value, norms)
    with torch.no_grad():
        moves = 1e-6 * torch.eye(GROUPS, dtype=torch.float64)
        slopes = (penalty.value(norms + moves) - penalty.value(norms - moves)) / 2e-6
    torch.testing.assert_close(gradient, slopes, rtol=1e-5, atol=1e-5)


@every_penalty
def test_a_new_budget_makes_the_same_kind(name):
    penalty = penalty_of(name)
    other = penalty.replace_budget(2.0, torch.ones(GROUPS))
    assert type(other) is type(penalty)
    expected = penalty_of(name, budget=2.0).prox_factors(random_norms(GROUPS), STRENGTH)
    torch.testing.assert_close(other.prox_factors(random_norms(GROUPS), STRENGTH), expected)


@every_penalty
@pytest.mark.parametrize(
    ("norms", "message"),
    [
        (torch.tensor([1.0, math.nan]), "finite and not negative"),
        (torch.tensor([1.0, math.inf]), "finite and not negative"),
        (torch.tensor([1.0, -1.0]), "finite and not negative"),
        (torch.tensor([1, 2]), "floating-point"),
        (torch.tensor(1.0), "no groups"),
    ],
    ids=["nan", "infinite", "negative", "integers", "scalar"],
)
def test_norms_that_are_none_are_refused(name, norms, message):
    with pytest.raises(InputError, match=message):
        penalty_of(name).prox_factors(norms, STRENGTH)
    with pytest.raises(InputError, match=message):
        penalty_of(name).value(norms)


@every_penalty
@pytest.mark.parametrize("strength", [-0.1, math.nan, math.inf, torch.tensor([0.1, math.nan])])
def test_a_strength_that_is_none_is_refused(name, strength):
    with pytest.raises(InputError, match="strength must be finite"):
        penalty_of(name).prox_factors(random_norms(2, GROUPS), strength)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(InputError, match="one of envelope, wgsef"):
        make_penalty("lasso")
