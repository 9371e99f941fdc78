"""A network that is moved after its groups were made: everything that they keep goes with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hwprune.graph.branches import find_branches
from hwprune.graph.coupling import find_axes
from hwprune.groups import MASKED
from hwprune.groups.base import GroupSet
from hwprune.groups.branch import BranchGroups
from hwprune.groups.channel import ChannelGroups
from hwprune.groups.weight import WeightAllowance, WeightGroups
from hwprune.penalties import make_penalty
from hwprune.train.prox import ProximalStep
from hwprune.train.schedule import StrengthSchedule
from hwprune.workloads import make_model

IMAGES = torch.zeros(2, 3, 8, 8)
#: Needs no accelerator: tensors without values.
ELSEWHERE = torch.device("meta")


def network() -> nn.Module:
    return make_model("resnet8", in_channels=3, image_size=8, classes=5, seed=0)


def channels(model: nn.Module) -> GroupSet:
    axes = find_axes(model, IMAGES)
    return ChannelGroups(model, axes, {axis.name: 1 for axis in axes})


def branches(model: nn.Module) -> GroupSet:
    return BranchGroups(model, find_branches(model, IMAGES)[1])


KINDS = {"channel": channels, "branch": branches, **MASKED}


def tensors_of(value: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that an object keeps."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from tensors_of(item, f"{path}.{name}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from tensors_of(item, f"{path}[{index}]")
    elif type(value).__module__.startswith("hwprune."):
        slots = {name: getattr(value, name) for name in getattr(type(value), "__slots__", ())}
        yield from tensors_of({**getattr(value, "__dict__", {}), **slots}, path)


def left_behind(value: Any) -> list[str]:
    found = list(tensors_of(value, ""))
    assert found
    return [path for path, tensor in found if tensor.device != ELSEWHERE]


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_groups_keep_moves(kind: str) -> None:
    model = network()
    groups = KINDS[kind](model)
    groups.rebind(model.to(ELSEWHERE))
    assert left_behind(groups) == []


def proximal_step(model: nn.Module) -> ProximalStep:
    groups = WeightGroups(model)
    return ProximalStep(
        groups,
        make_penalty("halo", singles=True),
        WeightAllowance(groups, groups.member_count // 2),
        StrengthSchedule(20, peak=0.2),
    )


def test_all_that_the_proximal_step_keeps_moves_before_the_first_step_and_after_resuming() -> None:
    model = network()
    proximal = proximal_step(model)
    optimizer = proximal.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    for _ in range(10):
        model(IMAGES + 1).sum().backward()
        optimizer.step()
    state = proximal.state_dict()
    assert state["pull"]["state"]

    moved = network()
    again = proximal_step(moved)
    again.load_state_dict(state)
    moved.to(ELSEWHERE)
    again.groups.rebind(moved)
    again.attach(torch.optim.SGD(moved.parameters(), lr=0.1))
    assert again.step == proximal.step
    assert left_behind(again) == []
