"""The half-space step and HALO's trained coefficients as functions."""

import pytest
import torch

from hwprune.errors import InputError
from hwprune.penalties import GroupLasso, HalfSpace, Halo, TrainedHalo, half_space_mask


def test_the_mask_is_the_penaltys_test_on_inner_products():
    generator = torch.Generator().manual_seed(0)
    trial, current = torch.randn(2, 50, 3, generator=generator)
    for epsilon in (0.0, 0.5):
        stays = HalfSpace(epsilon).stays((trial * current).sum(-1), current.square().sum(-1))
        assert torch.equal(stays, half_space_mask(trial, current, epsilon))
        assert 0 < stays.sum() < 50


def test_its_proximal_operator_is_the_lassos():
    norms = torch.rand(20)
    assert torch.equal(HalfSpace().prox_factors(norms, 0.3), GroupLasso().prox_factors(norms, 0.3))


@pytest.mark.parametrize("epsilon", [-0.1, 1.0, float("nan")])
def test_an_epsilon_out_of_range_is_refused(epsilon):
    with pytest.raises(InputError, match="epsilon"):
        HalfSpace(epsilon)


def test_coefficients_descend_the_objective_they_are_trained_on():
    norms = torch.rand(30, dtype=torch.float64)
    penalty = TrainedHalo(rate=1.0)
    halo, state = Halo(penalty.xi, penalty.psi, penalty.mean * 30), penalty.start(norms)

    def objective(coefficients):
        return float(halo.value(norms, coefficients) + penalty.decay / 2 * coefficients.square().sum())

    before = objective(state["coefficients"])
    for _ in range(200):
        _, state = penalty.advance(norms, 0.01, state)
    assert objective(state["coefficients"]) < before
    assert (state["coefficients"] >= penalty.least).all()


def test_coefficients_come_to_rest_where_the_gradient_is_zero():
    penalty = TrainedHalo(psi=0.0)
    norms = torch.tensor([0.02, 0.1, 0.5], dtype=torch.float64)
    state = penalty.start(norms)
    for _ in range(5000):
        _, state = penalty.advance(norms, 0.001, state)
    torch.testing.assert_close(state["coefficients"], (2 * norms / penalty.decay).pow(0.25))


@pytest.mark.parametrize("broken", [{"xi": 0.0}, {"decay": -1.0}, {"rate": float("inf")}, {"least": 0.0}])
def test_numbers_out_of_range_are_refused(broken):
    with pytest.raises(InputError, match=next(iter(broken))):
        TrainedHalo(**broken)
