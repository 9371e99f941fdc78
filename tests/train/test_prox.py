import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from hwprune.errors import ArtifactError, InputError, TrainingError
from hwprune.graph.coupling import find_axes
from hwprune.groups.channel import ChannelGroups
from hwprune.groups.costs import CountBudget
from hwprune.groups.widths import WidthAllowance
from hwprune.penalties import make_penalty
from hwprune.targets import Groups, describe
from hwprune.train.prox import STATE_KEY, ProximalStep
from hwprune.train.schedule import StrengthSchedule

STEPS = 60


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip


def proximal_step(
    model, budget=12, penalty="envelope", align=1, choose=None, steps=STEPS, notify=lambda line: None
):
    axes = find_axes(model, torch.zeros(1, 1, 8, 8))
    groups = ChannelGroups(model, axes, {axis.name: align for axis in axes})
    return ProximalStep(
        groups,
        make_penalty(penalty),
        WidthAllowance(groups, CountBudget(np.array(groups.aligns), budget), choose),
        StrengthSchedule(steps, peak=0.2),
        describe(Groups(budget)),
        notify,
    )


def batch(step):
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(0, 4, (16,), generator=generator)
    images = torch.randn(16, 1, 8, 8, generator=generator) + labels.view(-1, 1, 1, 1)
    return images, labels


def train(model, optimizer, first=0, last=STEPS):
    for step in range(first, last):
        images, labels = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()


OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-4),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_ends_on_exactly_the_budget(name):
    model = network()
    proximal = proximal_step(model)
    optimizer = OPTIMIZERS[name](model.parameters())
    assert proximal.attach(optimizer) is optimizer
    train(model, optimizer)
    assert proximal.settled
    assert proximal.groups_alive == 12
    dead = ~proximal.alive
    assert (proximal.groups.member_norms()[dead] == 0).all()


@pytest.mark.parametrize("penalty", ["envelope", "wgsef", "group-lasso", "magnitude"])
def test_every_penalty_settles_on_the_budget(penalty):
    model = network()
    proximal = proximal_step(model, penalty=penalty)
    train(model, proximal.attach(OPTIMIZERS["sgd"](model.parameters())))
    assert proximal.groups_alive == 12


def test_the_exact_envelope_gets_there_by_itself():
    model = network()
    proximal = proximal_step(model)
    train(model, proximal.attach(OPTIMIZERS["sgd"](model.parameters())), last=35)
    assert not proximal.settled
    assert 12 <= proximal.groups_alive < 20


@pytest.mark.parametrize(
    ("name", "buffers"), [("sgd", ["momentum_buffer"]), ("adam", ["exp_avg", "exp_avg_sq"])]
)
def test_momentum_of_the_dead_is_cleared_when_they_die_and_when_the_support_settles(name, buffers):
    model = network()
    proximal = proximal_step(model)
    optimizer = proximal.attach(OPTIMIZERS[name](model.parameters()))
    died = torch.zeros(16, dtype=torch.bool)
    for step in range(STEPS):
        before, settled = proximal.alive[:16], proximal.settled
        train(model, optimizer, first=step, last=step + 1)
        dying = before & ~proximal.alive[:16]
        cleared = dying if settled or not proximal.settled else ~proximal.alive[:16]
        for buffer in buffers:
            momentum = optimizer.state[model[0].weight][buffer].flatten(1)
            assert (momentum[cleared] == 0).all(), step
            assert momentum[proximal.alive[:16]].any(1).all(), step
        died |= dying
    assert died.any()


def test_resuming_is_bit_for_bit():
    whole = network()
    optimizer = proximal_step(whole).attach(OPTIMIZERS["sgd"](whole.parameters()))
    train(whole, optimizer)
    for stop in (20, 33, 50):
        first = network()
        optimizer = proximal_step(first).attach(OPTIMIZERS["sgd"](first.parameters()))
        train(first, optimizer, last=stop)
        second = network()
        resumed = proximal_step(second)
        optimizer_again = resumed.attach(OPTIMIZERS["sgd"](second.parameters()))
        second.load_state_dict(first.state_dict())
        optimizer_again.load_state_dict(optimizer.state_dict())
        train(second, optimizer_again, first=stop)
        for name, tensor in whole.state_dict().items():
            assert torch.equal(tensor, second.state_dict()[name]), (stop, name)


def never(*_arguments):
    raise AssertionError("the survivors are fixed already")


def test_once_settled_nothing_is_measured_again():
    """What is resumed after the settling does not depend on measurements, which differ from run to run."""
    ends = []
    for stop in (STEPS, 40):
        first = network()
        optimizer = proximal_step(first).attach(OPTIMIZERS["sgd"](first.parameters()))
        train(first, optimizer, last=stop)
        second = network()
        resumed = proximal_step(second, choose=never)
        again = resumed.attach(OPTIMIZERS["sgd"](second.parameters()))
        second.load_state_dict(first.state_dict())
        again.load_state_dict(optimizer.state_dict())
        train(second, again, first=stop)
        resumed.settle()
        ends.append(second.state_dict())
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name]), name


def test_an_optimizer_may_be_resumed_before_the_step_is_attached():
    first = network()
    optimizer = proximal_step(first).attach(OPTIMIZERS["sgd"](first.parameters()))
    train(first, optimizer, last=33)
    state = optimizer.state_dict()
    ends = []
    for attach_first in (True, False):
        model = network()
        model.load_state_dict(first.state_dict())
        resumed = proximal_step(model)
        optimizer_again = OPTIMIZERS["sgd"](model.parameters())
        if attach_first:
            resumed.attach(optimizer_again)
        optimizer_again.load_state_dict(copy.deepcopy(state))
        if not attach_first:
            resumed.attach(optimizer_again)
        assert resumed.step == 33
        assert STATE_KEY not in optimizer_again.param_groups[0]
        train(model, optimizer_again, first=33)
        ends.append(model.state_dict())
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name]), name


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"budget": 10}, r"in target.*'value': 10.*'value': 12"),
        ({"penalty": "group-lasso"}, r"in penalty.*group-lasso.*envelope"),
        ({"steps": 2 * STEPS}, r"in total_steps, settle_step.*120.*72.*60.*36"),
    ],
)
def test_a_state_of_another_compression_is_refused(changes, told):
    first = proximal_step(network())
    other = proximal_step(network(), **changes)
    with pytest.raises(ArtifactError, match=told):
        other.load_state_dict(first.state_dict())
    assert other.allowance.limit == changes.get("budget", 12)
    old = {key: value for key, value in first.state_dict().items() if key not in ("asked", "members")}
    other.load_state_dict(old)


def test_a_training_that_is_settled_may_become_longer():
    first = proximal_step(network())
    first.settle()
    longer = proximal_step(network(), steps=2 * STEPS)
    longer.load_state_dict(first.state_dict())
    assert longer.settled
    with pytest.raises(ArtifactError, match="in target"):
        proximal_step(network(), budget=10).load_state_dict(first.state_dict())


def test_a_state_of_another_network_with_as_many_channels_is_refused():
    state = proximal_step(network()).state_dict()
    other = nn.Sequential(*list(network())[:3], nn.Conv2d(16, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3))
    with pytest.raises(ArtifactError, match="another network"):
        proximal_step(nn.Sequential(other, *list(network())[6:8], nn.Linear(8, 4))).load_state_dict(state)


def test_weights_that_are_no_numbers_choose_no_survivors():
    model = network()
    proximal = proximal_step(model)
    with torch.no_grad():
        model[3].weight[2] = float("nan")
    with pytest.raises(TrainingError, match=r"not finite \(in layer 3\)"):
        proximal.settle()
    assert not proximal.settled


def test_an_optimizer_of_another_network_is_refused():
    proximal = proximal_step(network())
    with pytest.raises(InputError, match="updates no parameter"):
        proximal.attach(OPTIMIZERS["sgd"](network().parameters()))


def test_what_was_pruned_before_is_dead_from_the_start():
    first = network()
    loose = proximal_step(first, budget=20)
    train(first, loose.attach(OPTIMIZERS["sgd"](first.parameters())))
    second = network()
    second.load_state_dict(first.state_dict())
    tight = proximal_step(second, budget=12)
    tight.bury_zeros()
    assert torch.equal(tight.alive, loose.alive)
    train(second, tight.attach(OPTIMIZERS["sgd"](second.parameters())))
    assert tight.groups_alive == 12
    assert not (tight.alive & ~loose.alive).any()


def test_an_optimizer_with_a_closure_ends_on_the_budget_too():
    model = network()
    proximal = proximal_step(model)
    optimizer = proximal.attach(torch.optim.LBFGS(model.parameters(), lr=0.05, max_iter=2, history_size=2))
    for step in range(STEPS):
        images, labels = batch(step)

        def closure(images=images, labels=labels):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            return loss

        optimizer.step(closure)
    assert (proximal.step, proximal.settled, proximal.groups_alive) == (STEPS, True, 12)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_distributed_checkpoints_restore_the_pruning_and_make_no_step(name):
    whole = network()
    train(whole, proximal_step(whole).attach(OPTIMIZERS[name](whole.parameters())))
    first = network()
    optimizer = proximal_step(first).attach(OPTIMIZERS[name](first.parameters()))
    train(first, optimizer, last=33)
    saved = get_optimizer_state_dict(first, optimizer)
    second = network()
    resumed = proximal_step(second)
    again = resumed.attach(OPTIMIZERS[name](second.parameters()))
    second.load_state_dict(first.state_dict())
    # What is read before the first step makes the optimiser fill its state by a step of its own.
    get_optimizer_state_dict(second, again)
    assert resumed.step == 0
    set_optimizer_state_dict(second, again, saved)
    assert resumed.step == 33
    for key, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[key]), key
    train(second, again, first=33)
    for key, tensor in whole.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[key]), key


def test_the_first_step_of_a_warm_up_from_nothing_counts():
    model = network()
    proximal = proximal_step(model)
    optimizer = proximal.attach(torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9))
    train(model, optimizer, last=2)
    assert proximal.step == 2


def test_a_state_without_pruning_is_told():
    notes = []
    model = network()
    proximal = proximal_step(model, notify=notes.append)
    optimizer = proximal.attach(OPTIMIZERS["sgd"](model.parameters()))
    train(model, optimizer, last=5)
    flat = StateDictOptions(flatten_optimizer_state_dict=True)
    set_optimizer_state_dict(
        model, optimizer, get_optimizer_state_dict(model, optimizer, options=flat), options=flat
    )
    assert notes == ["the optimizer's state holds nothing of the pruning, which is at step 5"]


@pytest.mark.parametrize("penalty", ["halo", "envelope", "half-space"])
def test_a_training_that_is_rolled_back_forgets_what_came_after(penalty):
    whole = network()
    train(whole, proximal_step(whole, penalty=penalty).attach(OPTIMIZERS["sgd"](whole.parameters())))
    model = network()
    proximal = proximal_step(model, penalty=penalty)
    optimizer = proximal.attach(OPTIMIZERS["sgd"](model.parameters()))
    train(model, optimizer, last=1)
    good = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, first=20, last=50)
    model.load_state_dict(good[0])
    optimizer.load_state_dict(good[1])
    assert proximal.step == 1
    train(model, optimizer, first=1)
    for key, tensor in whole.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[key]), key


class Wrapper(torch.optim.Optimizer):
    """Passes everything on to the optimiser inside, as Accelerate's does; it has no hooks."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups


def test_an_optimizer_without_hooks_is_refused_and_the_right_one_taken_after_it():
    model = network()
    proximal = proximal_step(model)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with pytest.raises(InputError, match=r"no hooks.*Wrapper.*before it is given to accelerator\.prepare"):
        proximal.attach(Wrapper(optimizer))
    train(model, proximal.attach(optimizer), last=3)
    assert proximal.step == 3


def test_after_a_state_that_was_refused_the_right_one_is_taken():
    model = network()
    other = network()
    stranger = OPTIMIZERS["sgd"](other.parameters())
    proximal_step(other, budget=5).attach(stranger)
    train(other, stranger, last=2)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    optimizer.load_state_dict(stranger.state_dict())
    proximal = proximal_step(model)
    for _ in range(2):  # it is not forgotten after the first time
        with pytest.raises(ArtifactError, match="another compression"):
            proximal.attach(optimizer)
    proximal.attach(OPTIMIZERS["sgd"](model.parameters()))


def test_an_optimizer_has_room_for_one_pruning():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    proximal_step(model).attach(optimizer)
    with pytest.raises(InputError, match="another compressor already"):
        proximal_step(model).attach(optimizer)
    proximal_step(model).attach(torch.optim.SGD(model.parameters(), lr=0.1))


def test_a_state_that_lacks_something_is_refused():
    proximal = proximal_step(network())
    state = proximal.state_dict()
    del state["step"]
    with pytest.raises(ArtifactError, match="incomplete"):
        proximal_step(network()).load_state_dict(state)


def test_weights_that_are_no_numbers_are_told_while_everything_fits():
    model = network()
    proximal = proximal_step(model, budget=10**6)
    optimizer = proximal.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    quiet = round(proximal.schedule.start * STEPS)
    for _ in range(quiet):
        optimizer.step()
    with pytest.raises(TrainingError, match="layer 0"):
        optimizer.step()
