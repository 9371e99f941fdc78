"""A proximal step on a CUDA device does what it does on the CPU."""

import copy

import pytest
import torch
from torch import nn

from hwprune.groups.weight import WeightGroups
from hwprune.penalties import make_penalty
from hwprune.train.prox import ProximalStep
from hwprune.train.schedule import StrengthSchedule

pytestmark = pytest.mark.gpu
STEPS = 30


def stepped(model, penalty):
    """The weights after the ramp and after the settling, on the CPU; the optimiser itself moves nothing."""
    groups = WeightGroups(model)
    schedule = StrengthSchedule(STEPS, peak=0.1)
    proximal = ProximalStep(
        groups, make_penalty(penalty), groups.allowance(lambda total: total // 4), schedule
    )
    optimizer = proximal.attach(torch.optim.SGD(model.parameters(), lr=0.0))
    states = []
    for step in range(1, schedule.settle_step + 1):
        model(torch.ones(2, 30, device=groups.parameters()[0].device)).sum().backward()
        optimizer.step()
        if step >= schedule.settle_step - 1:
            states.append([parameter.detach().cpu().clone() for parameter in model.parameters()])
    assert proximal.settled
    return states


@pytest.mark.parametrize("penalty", ["envelope", "wgsef", "hard-threshold"])
def test_a_training_steps_and_settles_as_on_the_cpu(penalty):
    torch.manual_seed(0)
    here = nn.Sequential(nn.Linear(30, 80), nn.ReLU(), nn.Linear(80, 10))
    there = copy.deepcopy(here).cuda()
    for cpu, gpu in zip(stepped(here, penalty), stepped(there, penalty), strict=True):
        for expected, found in zip(cpu, gpu, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
