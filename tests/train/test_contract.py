"""What every penalty must do with every granularity."""

import numpy as np
import pytest
import torch
from torch import nn

from hwprune.errors import ArtifactError, InputError
from hwprune.graph.coupling import find_axes
from hwprune.groups import MASKED, SINGLE_WEIGHTS
from hwprune.groups.channel import ChannelGroups
from hwprune.groups.costs import CountBudget
from hwprune.groups.widths import WidthAllowance
from hwprune.penalties import REGISTRY, StatefulPenalty, StraightThroughPenalty, make_penalty, penalty_names
from hwprune.train.checkpoint import load_checkpoint, save_checkpoint
from hwprune.train.prox import ProximalStep
from hwprune.train.schedule import StrengthSchedule

STEPS = 40
GRANULARITIES = ("channel", *MASKED)
CASES = [
    pytest.param(penalty, granularity, id=f"{penalty}-{granularity}")
    for granularity in GRANULARITIES
    for penalty in penalty_names(singles=granularity in SINGLE_WEIGHTS)
]


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 12, 3), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 12, 3), nn.BatchNorm2d(12), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
    )  # fmt: skip


def proximal_step(model, penalty, granularity, peak=0.2):
    if granularity == "channel":
        axes = find_axes(model, torch.zeros(1, 4, 8, 8, dtype=model[0].weight.dtype))
        groups = ChannelGroups(model, axes, {axis.name: 2 for axis in axes})
        allowance = WidthAllowance(groups, CountBudget(np.array(groups.aligns), 5))
    else:
        groups = MASKED[granularity](model, ())
        allowance = groups.allowance(lambda total: total // 4)
    schedule = StrengthSchedule(STEPS, peak=peak)
    singles = granularity in SINGLE_WEIGHTS
    return ProximalStep(groups, make_penalty(penalty, singles=singles), allowance, schedule)


def train(model, optimizer, first=0, last=STEPS):
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        labels = torch.randint(0, 4, (16,), generator=generator)
        images = torch.randn(16, 4, 8, 8, generator=generator) + labels.view(-1, 1, 1, 1)
        images = images.to(model[0].weight.dtype)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)


@pytest.mark.parametrize("peak", [0.02, 0.2, 20.0])
@pytest.mark.parametrize(("penalty", "granularity"), CASES)
def test_exactly_the_budget_is_left_at_any_strength(penalty, granularity, peak):
    model = network()
    proximal = proximal_step(model, penalty, granularity, peak)
    train(model, proximal.attach(make_optimizer(model)))
    assert proximal.settled
    assert proximal.groups_alive == proximal.allowance.limit
    norms = proximal.groups.member_norms()
    assert (norms[~proximal.alive] == 0).all()
    assert torch.isfinite(norms).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("penalty", ["envelope", "half-space"])
def test_weights_may_be_of_any_precision(penalty, granularity, dtype):
    model = network().to(dtype)
    proximal = proximal_step(model, penalty, granularity)
    train(model, proximal.attach(make_optimizer(model)))
    assert proximal.groups_alive == proximal.allowance.limit
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


#: Those under which nothing that is zero comes back.
FINAL = [case for case in CASES if not isinstance(make_penalty(case.values[0]), StraightThroughPenalty)]


@pytest.mark.parametrize(("penalty", "granularity"), FINAL)
def test_the_dead_stay_dead_and_have_no_momentum_when_they_die(penalty, granularity):
    model = network()
    proximal = proximal_step(model, penalty, granularity)
    optimizer = proximal.attach(make_optimizer(model))
    alive = proximal.alive
    for step in range(STEPS):
        train(model, optimizer, step, step + 1)
        died, alive = alive & ~proximal.alive, proximal.alive.clone()
        assert (proximal.groups.member_norms()[~alive] == 0).all()
        if died.any():
            # Whatever scales the weights of the dead alone to 0 changes no momentum any more.
            before = [state["momentum_buffer"].clone() for state in optimizer.state.values()]
            proximal.groups.momenta_scale_(optimizer, ~died)
            after = [state["momentum_buffer"] for state in optimizer.state.values()]
            assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert proximal.groups_alive == proximal.allowance.limit


@pytest.mark.parametrize("stop", [2, 11, 20, 30])
@pytest.mark.parametrize(("penalty", "granularity"), CASES)
def test_a_saved_state_goes_on_bit_for_bit(tmp_path, penalty, granularity, stop):
    whole, second = network(), network()
    first_optimizer = proximal_step(whole, penalty, granularity).attach(make_optimizer(whole))
    train(whole, first_optimizer, last=stop)
    save_checkpoint(tmp_path / "state", first_optimizer.state_dict())
    second.load_state_dict(whole.state_dict())
    train(whole, first_optimizer, first=stop)
    resumed = proximal_step(second, penalty, granularity)
    second_optimizer = resumed.attach(make_optimizer(second))
    second_optimizer.load_state_dict(load_checkpoint(tmp_path / "state"))
    train(second, second_optimizer, first=stop)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("penalty", [n for n in REGISTRY if isinstance(make_penalty(n), StatefulPenalty)])
def test_coefficients_belong_to_members_move_and_are_saved(penalty, granularity):
    model = network()
    proximal = proximal_step(model, penalty, granularity)
    optimizer = proximal.attach(make_optimizer(model))
    train(model, optimizer, last=20)
    (coefficients,) = optimizer.state_dict()["param_groups"][0]["hwprune"]["pull"]["state"].values()
    assert coefficients.shape == (proximal.groups.member_count,)
    assert not torch.equal(coefficients, torch.ones_like(coefficients))


def test_strong_weights_free_themselves_of_halo():
    model = network()
    proximal = proximal_step(model, "halo", "weight")
    optimizer = proximal.attach(make_optimizer(model))
    train(model, optimizer, last=20)
    coefficients = optimizer.state_dict()["param_groups"][0]["hwprune"]["pull"]["state"]["coefficients"]
    norms = proximal.groups.member_norms()
    strong = norms > norms.quantile(0.8)
    assert coefficients[strong].mean() > 1.2 * coefficients[norms < norms.median()].mean()


def test_coefficients_are_refused_by_a_penalty_that_has_none():
    model = network()
    optimizer = proximal_step(model, "halo", "weight").attach(make_optimizer(model))
    train(model, optimizer, last=20)
    other = proximal_step(network(), "group-lasso", "weight")
    with pytest.raises(ArtifactError, match="in penalty"):
        other.load_state_dict(optimizer.state_dict()["param_groups"][0]["hwprune"])


def test_a_penalty_of_single_weights_is_refused_for_channels():
    assert "l1" not in penalty_names(singles=False)
    with pytest.raises(InputError, match="single weights"):
        make_penalty("l1", singles=False)
