"""Numbers at the ends of their type, and arguments that are none."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from hwprune.errors import InputError
from hwprune.penalties import GroupEnvelope, HardThreshold, strongest
from hwprune.penalties.half_space import half_space_mask
from hwprune.penalties.halo import Halo, ProfiledHalo, TrainedHalo
from hwprune.penalties.n_m import nm_mask

SCALES = [
    (torch.float32, 1.0, 1e-40),
    (torch.float32, 1e38, 1e-38),
    (torch.float64, 1e200, 1e-200),
    (torch.float64, 1.0, 1e-310),
]


@pytest.mark.parametrize("debias", [True, False])
@pytest.mark.parametrize("groups", [2, 3, 5])
@pytest.mark.parametrize(("dtype", "large", "small"), SCALES)
def test_rows_of_any_scale_are_solved_as_if_alone(dtype, large, small, groups, debias):
    shares = torch.linspace(1.0, 0.4, groups, dtype=torch.float64)
    rows = torch.stack([shares * large, shares * small, shares]).to(dtype)
    envelope = GroupEnvelope(1, debias=debias)
    together = envelope.prox_factors(rows, 0.2)
    alone = torch.stack([envelope.prox_factors(row, 0.2) for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    # The proximal operator scales with the norms; denormal numbers have fewer digits, which is all.
    torch.testing.assert_close(together[1], together[2], rtol=1e-4, atol=1e-4)
    assert together[1, 0] > 0


@pytest.mark.parametrize("given", [{}, {"ridge": [1.0, 1.0]}, {"cost": [1.0, 1.0]}])
@pytest.mark.parametrize("budget", [2, float("inf")])
@pytest.mark.parametrize(
    ("dtype", "tiny"), [(torch.float32, 1e-38), (torch.float32, 1e-40), (torch.float64, 1e-310)]
)
def test_what_fits_stays_however_small(dtype, tiny, budget, given):
    weights = {name: torch.tensor(values) for name, values in given.items()}
    norms = torch.tensor([1.0, tiny, 0.0][: 3 if not given else 2], dtype=dtype)
    exact = GroupEnvelope(budget, **weights).prox_factors(norms, 0.2)
    plain = GroupEnvelope(budget, debias=False, **weights).prox_factors(norms, 0.2)
    living = (norms > 0).to(dtype)
    assert torch.equal(exact, living)
    torch.testing.assert_close(plain, living / 1.2)
    batch = GroupEnvelope(budget, **weights).prox_factors(norms.expand(3, -1).contiguous(), 0.2)
    assert torch.equal(batch, living.expand(3, -1))


def test_norms_may_be_overwritten_whatever_their_scale():
    rows = torch.tensor([[1.0, 0.5, 0.2], [1e-40, 1e-40, 5e-41], [1.0, 0.0, 0.0]])
    wanted = GroupEnvelope(1).prox_factors(rows.clone(), 0.2)
    assert torch.equal(GroupEnvelope(1).solve(rows, 0.2, out=rows).factors, wanted)


@pytest.mark.parametrize("seed", range(20))
def test_costs_that_add_up_to_the_budget_but_for_rounding_fit(seed):
    generator = torch.Generator().manual_seed(seed)
    groups = int(torch.randint(2, 900, (), generator=generator))
    cost = torch.rand(groups, generator=generator, dtype=torch.float64) + 1e-3
    norms = torch.rand(groups, generator=generator, dtype=torch.float64) + 1e-3
    budget = float(cost[torch.randperm(groups, generator=generator)].sum())
    envelope = GroupEnvelope(budget, cost=cost)
    assert envelope.value(norms) == 0
    assert torch.equal(envelope.prox_factors(norms, 0.1), torch.ones_like(norms))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_budget_that_is_whole_but_for_rounding_is_whole(dtype):
    assert 0.57 * 100 != 57
    norms = torch.ones(100, dtype=dtype)
    norms[57:] = 0
    factors = GroupEnvelope(0.57 * 100).prox_factors(norms, 0.1)
    assert torch.equal(factors, (norms > 0).to(dtype))


def test_gradients_of_arguments_do_no_harm():
    layer = torch.nn.Linear(3, 2)
    ridge = layer.weight.norm(dim=1)
    norms = layer.weight.norm(dim=1)
    envelope = GroupEnvelope(1, ridge=ridge)
    assert not envelope.prox_factors(norms, 0.2).requires_grad
    envelope.value(norms).backward()
    strength = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    assert not GroupEnvelope(1).prox_factors(norms.double(), strength).requires_grad
    leaf = torch.ones(3, requires_grad=True)
    assert GroupEnvelope(1).solve(leaf, 0.2, out=leaf).factors is leaf


def test_conjugate_and_value_do_not_overflow_on_the_way():
    double = torch.float64
    large, small = torch.tensor([1e200], dtype=double), torch.tensor([1e-200], dtype=double)
    assert GroupEnvelope(1, ridge=torch.tensor([1e300], dtype=double)).conjugate(large) == pytest.approx(5e99)
    assert GroupEnvelope(1, ridge=torch.tensor([1e-300], dtype=double)).conjugate(small) == pytest.approx(
        5e-101
    )
    assert GroupEnvelope(1).conjugate(torch.zeros(3)) == 0
    infinite = GroupEnvelope(1, ridge=torch.tensor([1e-300], dtype=double)).conjugate(large * 1e100)
    assert infinite == float("inf")
    assert float(ProfiledHalo().value(torch.full((10**5,), 1e25))) == pytest.approx(1e30, rel=1e-4)


def test_a_half_space_is_the_same_at_every_scale():
    current = torch.full((1, 4), 1e-25)
    assert half_space_mask(current, current).all()
    assert not half_space_mask(-current, current).any()
    assert not half_space_mask(current, torch.zeros(1, 4)).any()
    assert half_space_mask(torch.tensor([[1e20, 1e20]]), torch.tensor([[1e-25, 0.0]])).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_any_strength_but_zero_projects(dtype):
    norms = torch.tensor([2.0, 0.5], dtype=dtype)
    assert HardThreshold(1).prox_factors(norms, 1e-60).tolist() == [1, 0]
    assert HardThreshold(1).prox_factors(norms, 0.0).tolist() == [1, 1]


ONES = torch.ones(3)


@pytest.mark.parametrize(
    "ask",
    [
        lambda: GroupEnvelope(1).prox_factors([1.0, 2.0], 0.1),
        lambda: GroupEnvelope(1).prox_factors(np.ones(3), 0.1),
        lambda: GroupEnvelope(1).prox_factors(ONES.to(torch.float8_e4m3fn), 0.1),
        lambda: GroupEnvelope(10**400),
        lambda: GroupEnvelope(torch.tensor(1j)),
        lambda: GroupEnvelope(1, cost=torch.tensor([1j])),
        lambda: GroupEnvelope(1).prox_factors(ONES, 10**400),
        lambda: GroupEnvelope(1).prox_factors(ONES, torch.tensor(1j)),
        lambda: GroupEnvelope(1).solve(ONES, 0.1, torch.ones(2)),
        lambda: GroupEnvelope(1).solve(ONES.expand(4, 3), 0.1, torch.ones(3, 1)),
        lambda: GroupEnvelope(1).solve(ONES.double(), 0.1, 1.0),
        lambda: strongest(ONES, float("nan")),
        lambda: strongest(ONES, -1),
        lambda: strongest(ONES, "1"),
        lambda: strongest(ONES, 1, cost=[1.0, 1.0, 1.0]),
        lambda: strongest(ONES, 1, cost=torch.tensor([1.0, -1.0, 1.0])),
        lambda: Halo(1, 1, 1).value(torch.ones(2, 3), torch.ones(5, 3)),
        lambda: Halo("a", 1, 1),
        lambda: TrainedHalo(rate="fast"),
        lambda: nm_mask(torch.ones(4), 2.0, 4),
    ],
)
def test_what_is_no_argument_is_told(ask):
    with pytest.raises(InputError):
        ask()


def test_any_real_number_is_a_budget():
    assert torch.equal(
        GroupEnvelope(Fraction(2)).prox_factors(torch.tensor([1.0, 1.0, 0.0]), 0.1),
        torch.tensor([1.0, 1.0, 0.0]),
    )
