"""SR-STE: the network computes with masked weights, the dense ones are trained."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, linear

from hwprune.errors import ArtifactError
from hwprune.groups.base import Terms
from hwprune.groups.block import BlockGroups
from hwprune.penalties import (
    StraightThrough,
    StraightThroughPenalty,
    make_penalty,
    nm_mask,
    penalty_names,
    sr_ste_gradient,
)
from hwprune.train.prox import ProximalStep
from hwprune.train.schedule import StrengthSchedule

STEPS, SETTLE = 20, 18
#: Masks from the first step on, without coming down to them.
AT_ONCE = StrengthSchedule(STEPS, start=0.0, full=0.0, settle=SETTLE / STEPS, peak=1.0)
#: So much that decay is seen in a few steps.
DECAY = 0.5


class Standing(BlockGroups):
    """Blocks whose budget stands from the first step, as the paper has it."""

    def allowance(self, count_of):
        allowance = super().allowance(count_of)
        allowance.terms = lambda grouping, alive: Terms(2, None)
        return allowance


def model_of(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 6, bias=False))


def batch(step):
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(16, 8, generator=generator)
    return inputs, inputs[:, :6].argmax(1)


def proximal_of(model, penalty=None, schedule=AT_ONCE):
    groups = Standing(model)
    allowance = groups.allowance(lambda total: total // 2)
    return ProximalStep(groups, penalty or StraightThrough(covered_decay=DECAY), allowance, schedule)


def train(model, optimizer, first, last):
    for step in range(first, last):
        inputs, labels = batch(step)
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()


def reference(steps, rate):
    """The paper's equations 8 and 9 with plain SGD, from the dense weights; the first step is dense."""
    dense = model_of()[0].weight.detach().clone()
    mask = torch.ones_like(dense, dtype=torch.bool)
    for step in range(steps):
        inputs, labels = batch(step)
        masked = (dense * mask).requires_grad_()
        cross_entropy(linear(inputs, masked), labels).backward()
        dense = dense - rate * sr_ste_gradient(masked.grad, dense, mask, DECAY)
        mask = nm_mask(dense, 2, 4)
    return dense, mask


@pytest.mark.parametrize("steps", [1, 2, SETTLE - 1])
def test_with_plain_sgd_it_is_the_papers_step(steps):
    model = model_of()
    optimizer = proximal_of(model).attach(torch.optim.SGD(model.parameters(), lr=0.5))
    train(model, optimizer, 0, steps)
    dense, mask = reference(steps, 0.5)
    torch.testing.assert_close(model[0].weight.detach(), dense * mask)
    (hidden,) = optimizer.state_dict()["param_groups"][0]["hwprune"]["hidden"]
    torch.testing.assert_close(hidden, dense * ~mask)


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.Adam], ids=["AdamW", "Adam"])
def test_weights_come_back_until_survivors_are_fixed(make):
    model = model_of()
    proximal = proximal_of(model, make_penalty("sr-ste"))
    optimizer = proximal.attach(make(model.parameters(), lr=0.1))
    died, back = torch.zeros(6, 8, dtype=torch.bool), 0
    for step in range(STEPS):
        train(model, optimizer, step, step + 1)
        shown = model[0].weight.detach() != 0
        assert shown.reshape(-1, 4).sum(1).eq(2).all()
        assert proximal.groups_alive == 24
        back += int((died & shown).sum())
        died |= ~shown
        if step + 1 == SETTLE:
            fixed = shown
    assert back > 0
    assert torch.equal(shown, fixed)
    assert optimizer.state_dict()["param_groups"][0]["hwprune"]["hidden"] == []


def test_a_closure_sees_the_masked_weights():
    model, plain = model_of(), model_of()
    optimizer = proximal_of(model).attach(torch.optim.SGD(model.parameters(), lr=0.5))
    train(plain, proximal_of(plain).attach(torch.optim.SGD(plain.parameters(), lr=0.5)), 0, 10)

    def closure():
        optimizer.zero_grad()
        loss = cross_entropy(model(inputs), labels)
        loss.backward()
        return loss

    for step in range(10):
        inputs, labels = batch(step)
        optimizer.step(closure)
    assert torch.equal(model[0].weight, plain[0].weight)


def test_weights_of_another_network_behind_the_zeros_are_refused():
    model = model_of()
    proximal = proximal_of(model)
    train(model, proximal.attach(torch.optim.SGD(model.parameters(), lr=0.5)), 0, 3)
    state = proximal.state_dict()
    with pytest.raises(ArtifactError, match="behind the zeros"):
        proximal_of(model_of()).load_state_dict({**state, "hidden": [torch.zeros(6, 4)]})


def test_no_other_penalty_hides_weights():
    hiding = [name for name in penalty_names() if isinstance(make_penalty(name), StraightThroughPenalty)]
    assert hiding == ["sr-ste"]
