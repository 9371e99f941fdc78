"""The envelope's corner cases, each with the answer that can be seen without computing."""

from __future__ import annotations

import math

import pytest
import torch

from hwprune.errors import InputError
from hwprune.penalties import GroupEnvelope, GroupLasso, HardThreshold

both_forms = pytest.mark.parametrize("debias", [True, False], ids=["exact", "plain"])
both_types = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
STRENGTH = 0.1


def survivor(debias):
    """The factor of a group that stays."""
    return 1.0 if debias else 1 / (1 + STRENGTH)


def factors_of(norms, budget, *, debias, dtype=torch.float64, strength=STRENGTH, cost=None):
    envelope = GroupEnvelope(budget, cost=cost, debias=debias)
    return envelope.prox_factors(torch.tensor(norms, dtype=dtype), strength)


@both_forms
@both_types
@pytest.mark.parametrize("budget", [0, 0.5, 3, 10, math.inf])
def test_all_zero(debias, dtype, budget):
    norms = torch.zeros(3, dtype=dtype)
    envelope = GroupEnvelope(budget, debias=debias)
    assert (envelope.prox_factors(norms, STRENGTH) == 0).all()
    assert envelope.value(norms) == 0


@both_forms
@both_types
@pytest.mark.parametrize("budget", [2, 2.5, 100, math.inf])
def test_a_budget_that_all_living_groups_fit(debias, dtype, budget):
    expected = torch.tensor([survivor(debias), 0.0, survivor(debias)], dtype=dtype)
    torch.testing.assert_close(factors_of([3.0, 0.0, 1e-3], budget, debias=debias, dtype=dtype), expected)


@both_forms
@both_types
def test_a_budget_of_nothing(debias, dtype):
    assert (factors_of([3.0, 1.0, 0.0], 0, debias=debias, dtype=dtype) == 0).all()
    assert GroupEnvelope(0, debias=debias).value(torch.tensor([3.0, 1.0], dtype=dtype)) == math.inf


@both_forms
@both_types
@pytest.mark.parametrize("budget", [1, 2, 3])
def test_ties_share_the_budget(debias, dtype, budget):
    factors = factors_of([2.0] * 4, budget, debias=debias, dtype=dtype)
    opened = budget / 4
    expected = opened / (opened * (1 - STRENGTH * debias) + STRENGTH)
    torch.testing.assert_close(factors, torch.full_like(factors, expected))


@both_forms
@both_types
@pytest.mark.parametrize("budget", [0.25, 1.0, 2.0])
def test_one_group(debias, dtype, budget):
    opened = min(budget, 1.0)
    expected = opened / (opened * (1 - STRENGTH * debias) + STRENGTH)
    factors = factors_of([7.0], budget, debias=debias, dtype=dtype)
    torch.testing.assert_close(factors, torch.full_like(factors, expected))


@both_types
@pytest.mark.parametrize("strength", [0.999999, 1.0, 1e3, 1e30])
def test_a_huge_strength_keeps_exactly_the_strongest_of_the_exact_form(dtype, strength):
    factors = factors_of([1.0, 3.0, 2.0, 0.5], 2, debias=True, dtype=dtype, strength=strength)
    torch.testing.assert_close(factors, torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=dtype))


@both_types
@pytest.mark.parametrize("strength", [1e3, 1e30])
def test_a_huge_strength_shrinks_everything_of_the_plain_form(dtype, strength):
    factors = factors_of([1.0, 3.0, 2.0, 0.5], 2, debias=False, dtype=dtype, strength=strength)
    assert (factors <= 1 / strength * (1 + 1e-6)).all()


@both_forms
@both_types
@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6, 1e30])
def test_the_scale_of_the_norms_does_not_matter(debias, dtype, scale):
    norms = torch.tensor([3.0, 1.0, 2.0, 0.2], dtype=dtype)
    envelope = GroupEnvelope(2, debias=debias)
    torch.testing.assert_close(
        envelope.prox_factors(norms * scale, STRENGTH), envelope.prox_factors(norms, STRENGTH)
    )


@both_forms
def test_no_groups_and_no_rows(debias):
    envelope = GroupEnvelope(1, debias=debias)
    for shape in ((0,), (0, 3), (2, 0)):
        assert envelope.prox_factors(torch.zeros(shape), STRENGTH).shape == shape
        assert envelope.value(torch.zeros(shape)).shape == shape[:-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": -1.0}, "budget must not be negative"),
        ({"budget": math.nan}, "budget must not be negative"),
        ({"cost": torch.tensor([1.0, 0.0])}, "every cost must be positive"),
        ({"cost": torch.tensor([1.0, math.inf])}, "every cost must be positive"),
        ({"ridge": torch.tensor([1.0, -1.0])}, "every ridge must be positive"),
        ({"ridge": torch.tensor([[1.0]])}, "one number per group"),
    ],
)
def test_weights_that_are_none_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        GroupEnvelope(**arguments)


def test_weights_and_outputs_must_fit_the_norms():
    norms = torch.ones(3)
    with pytest.raises(InputError, match="cost does not fit"):
        GroupEnvelope(1, cost=torch.ones(2)).prox_factors(norms, STRENGTH)
    with pytest.raises(InputError, match="output does not fit"):
        GroupEnvelope(1).solve(norms, STRENGTH, out=torch.ones(3, dtype=torch.float64))
    with pytest.raises(InputError, match="cost does not fit"):
        GroupEnvelope(1, cost=torch.ones(2)).conjugate(norms)


@both_forms
@both_types
@pytest.mark.parametrize("strength", [1e-46, 1e-200, 5e-324])
def test_a_tiny_strength_is_no_division_by_zero(debias, dtype, strength):
    norms = torch.tensor([[1.0, 2.0, 0.0], [1.0, 2.0, 0.0]], dtype=dtype)
    for ridge in (None, torch.tensor([1.0, 0.1, 0.1])):
        factors = GroupEnvelope(1, ridge, debias=debias).prox_factors(norms, strength)
        torch.testing.assert_close(factors, torch.tensor([[1.0, 1.0, 0.0]] * 2, dtype=dtype))


@pytest.mark.parametrize("shape", [(3,), (2, 2), (1, 2, 1), (0,)])
def test_strengths_and_budgets_must_fit_the_rows(shape):
    norms, given = torch.ones(2, 4), torch.ones(shape)
    for penalty in (GroupEnvelope(given), HardThreshold(given)):
        with pytest.raises(InputError, match="budget does not fit the norms"):
            penalty.prox_factors(norms, STRENGTH)
        with pytest.raises(InputError, match="budget does not fit the norms"):
            penalty.value(norms)
    for penalty in (GroupEnvelope(1), HardThreshold(1), GroupLasso()):
        with pytest.raises(InputError, match="strength does not fit the norms"):
            penalty.prox_factors(norms, given)


def test_one_number_in_a_tensor_is_a_number():
    norms = torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)
    one = torch.tensor([1.0])
    for made in (GroupEnvelope, HardThreshold):
        expected = made(1.0).prox_factors(norms, 1.0)
        assert torch.equal(made(one).prox_factors(norms, one), expected)
    assert GroupLasso().prox_factors(norms, one).shape == norms.shape


@pytest.mark.parametrize("made", [GroupEnvelope, HardThreshold])
def test_lists_are_refused(made):
    with pytest.raises(InputError, match="cost must be a tensor"):
        made(1, cost=[1.0, 2.0])
    with pytest.raises(InputError, match="budget must be a number or a tensor"):
        made([1.0, 2.0])
    with pytest.raises(InputError, match="strength must be a number or a tensor"):
        made(1).prox_factors(torch.ones(2), [0.1])
