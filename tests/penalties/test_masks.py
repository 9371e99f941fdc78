"""What the penalties do beyond the common contract: masks, budgets with costs, HALO's coefficients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprune.errors import InputError
from hwprune.penalties import (
    Halo,
    ProfiledHalo,
    half_space_mask,
    nm_mask,
    soft_threshold,
    sr_ste_gradient,
    strongest,
)

quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def random_tensor(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@quick
@given(st.integers(0, 999), st.integers(1, 8), st.data())
def test_blocks_keep_their_largest_weights(seed, m, data):
    n = data.draw(st.integers(0, m))
    weights = random_tensor(seed, 3, 4 * m)
    mask = nm_mask(weights, n, m).reshape(3, 4, m)
    sizes = weights.abs().reshape(3, 4, m)
    assert (mask.sum(-1) == n).all()
    weakest_kept = torch.where(mask, sizes, torch.inf).amin(-1)
    strongest_cut = torch.where(mask, -torch.inf, sizes).amax(-1)
    assert (weakest_kept >= strongest_cut).all()


@pytest.mark.parametrize(("n", "m"), [(3, 2), (-1, 4), (0, 0)])
def test_patterns_that_are_none_are_refused(n, m):
    with pytest.raises(InputError, match="no N:M pattern"):
        nm_mask(torch.ones(4), n, m)


def test_blocks_must_divide_the_weights():
    with pytest.raises(InputError, match="blocks of 4 do not divide"):
        nm_mask(torch.ones(2, 6), 2, 4)


def test_masked_weights_decay_and_others_do_not():
    weights, gradient = random_tensor(0, 8), random_tensor(1, 8)
    mask = nm_mask(weights, 2, 4)
    extra = sr_ste_gradient(gradient, weights, mask, decay=0.1) - gradient
    torch.testing.assert_close(extra[~mask], 0.1 * weights[~mask])
    assert (extra[mask] == 0).all()


@quick
@given(st.integers(0, 999), st.floats(0, 0.9))
def test_groups_leave_with_their_half_space(seed, epsilon):
    trial, current = random_tensor(seed, 6, 3), random_tensor(seed + 1, 6, 3)
    current[0] = 0
    mask = half_space_mask(trial, current, epsilon)
    for stays, after, before in zip(mask, trial, current, strict=True):
        inside = float(after @ before) >= epsilon * float(before @ before)
        assert bool(stays) == (inside and bool(before.any()))


def test_half_spaces_that_are_none_are_refused():
    with pytest.raises(InputError, match="differ in shape"):
        half_space_mask(torch.ones(2, 3), torch.ones(3, 2))
    with pytest.raises(InputError, match="epsilon is out of range"):
        half_space_mask(torch.ones(2, 3), torch.ones(2, 3), epsilon=1.0)


@quick
@given(st.integers(0, 999), st.integers(0, 7))
def test_the_strongest_are_the_best_that_fit(seed, budget):
    norms = random_tensor(seed, 6).abs()
    stays = strongest(norms, budget)
    assert int(stays.sum()) == min(budget, 6)
    torch.testing.assert_close(norms[stays].sort(descending=True).values, norms.topk(min(budget, 6)).values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("budget", [0, 0.9, 1, 6.5, 7 - 1e-14, 12, 99, float("inf")])
def test_selection_is_what_sorting_gives(dtype, budget):
    norms = random_tensor(0, 40, 12).abs().mul(3).round().to(dtype)
    by_sorting = strongest(norms, budget, cost=torch.ones(12))
    assert torch.equal(strongest(norms, budget), by_sorting)
    assert torch.equal(strongest(norms[3], budget), by_sorting[3])


@quick
@given(st.integers(0, 999), st.floats(0.1, 10))
def test_the_strongest_with_costs_stay_within_the_budget(seed, budget):
    norms, cost = random_tensor(seed, 6).abs(), random_tensor(seed + 1, 6).abs() + 0.1
    stays = strongest(norms, budget, cost)
    assert float(cost[stays].sum()) <= budget
    worth = norms.square() / cost
    if stays.any() and not stays.all():
        assert worth[stays].min() >= worth[~stays].max()


def test_soft_threshold_is_the_prox_of_the_l1_norm():
    weights = random_tensor(0, 50)
    shrunk = soft_threshold(weights, 0.4)
    grid = torch.linspace(-4, 4, 8001, dtype=torch.float64)[:, None]
    least = ((grid - weights).square() / 2 + 0.4 * grid.abs()).amin(0)
    assert ((shrunk - weights).square() / 2 + 0.4 * shrunk.abs() <= least + 1e-12).all()


def test_halo_at_fixed_coefficients_is_a_weighted_lasso():
    halo, norms = Halo(xi=0.5, psi=0.1, total=8.0), random_tensor(0, 8).abs() + 0.1
    coefficients = random_tensor(1, 8).abs() + 0.5
    point = halo.prox_factors(norms, 0.3, coefficients) * norms
    least = (point - norms).square().sum() / 2 + 0.3 * halo.value(point, coefficients)
    for seed in range(100):
        rival = (point + 0.1 * random_tensor(seed, 8)).clamp_min(0.0)
        assert (rival - norms).square().sum() / 2 + 0.3 * halo.value(rival, coefficients) >= least - 1e-12


def test_halo_coefficients_gradient_is_that_of_its_value():
    halo, norms = Halo(xi=0.5, psi=0.1, total=3.0), random_tensor(0, 8).abs()
    coefficients = (random_tensor(1, 8).abs() + 0.5).requires_grad_()
    (gradient,) = torch.autograd.grad(halo.value(norms, coefficients), coefficients)
    torch.testing.assert_close(halo.coefficient_gradient(norms, coefficients.detach()), gradient)


def test_profiled_halo_has_the_best_coefficients():
    norms = random_tensor(0, 8).abs() + 0.1
    penalty, halo = ProfiledHalo(), Halo(xi=1.0, psi=0.0, total=8.0)
    best = penalty.coefficients(norms)
    assert float(best.sum()) == pytest.approx(8.0)
    assert float(halo.value(norms, best)) == pytest.approx(float(penalty.value(norms)))
    for seed in range(100):
        rival = best * (1 + 0.2 * random_tensor(seed, 8)).clamp_min(0.1)
        rival *= 8 / rival.sum()
        assert halo.value(norms, rival) >= penalty.value(norms) - 1e-12
