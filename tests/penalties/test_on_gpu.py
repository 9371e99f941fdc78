"""Penalties on a CUDA device give what they give on the CPU."""

import pytest
import torch

from hwprune.penalties import GroupEnvelope, PenaltySettings, make_penalty, penalty_names

pytestmark = pytest.mark.gpu
GROUPS, STRENGTH = 5000, 0.2


def random_norms(*shape, dtype):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).exp().to(dtype)


@pytest.mark.parametrize("name", penalty_names())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("shape", [(GROUPS,), (7, 40)])
def test_value_and_prox_are_those_of_the_cpu(name, dtype, shape):
    norms = random_norms(*shape, dtype=dtype)
    penalty = make_penalty(name, PenaltySettings(budget=shape[-1] // 3))
    factors, value = penalty.prox_factors(norms.cuda(), STRENGTH), penalty.value(norms.cuda())
    assert factors.is_cuda
    assert value.is_cuda
    torch.testing.assert_close(factors.cpu(), penalty.prox_factors(norms, STRENGTH), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(value.cpu(), penalty.value(norms), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("debias", [True, False], ids=["exact", "plain"])
@pytest.mark.parametrize("strength", [0.1, 3.0], ids=["gentle", "steep"])
def test_weights_on_either_device_do(debias, strength):
    norms, cost = random_norms(GROUPS, dtype=torch.float64), random_norms(GROUPS, dtype=torch.float64)
    envelope = GroupEnvelope(float(cost.sum()) / 3, cost.flip(0), cost, debias=debias)
    expected = envelope.prox_factors(norms, strength / float(cost.max()))
    there = GroupEnvelope(envelope.budget, cost.flip(0).cuda(), cost.cuda(), debias=debias)
    for other in (envelope, there):
        found = other.prox_factors(norms.cuda(), strength / float(cost.max()))
        torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-9)
