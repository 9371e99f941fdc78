"""The registry of rules, and single rules in forms that whole networks rarely show."""

import numpy as np
import pytest
import torch
from torch import nn

from hwprune.graph.coupling import find_axes
from hwprune.graph.flow import RULES, find_rule
from hwprune.graph.record import Call


def test_every_rule_belongs_to_an_operator_that_exists():
    unknown = {name for name in RULES if not hasattr(torch.ops.aten, name.removeprefix("aten."))}
    assert unknown <= {"aten._fused_rms_norm"}, "came with PyTorch 2.9"


def call(op):
    return Call(op=op, args=(), kwargs={}, outputs=(), module="")


def test_in_place_forms_follow_the_same_rule_and_out_forms_none():
    assert find_rule(call("aten.relu_.default")) is find_rule(call("aten.relu.default")) is not None
    assert find_rule(call("aten.add.out")) is None
    assert find_rule(call("other.relu.default")) is None


class Between(nn.Module):
    """A convolution with 6 channels, a function, a convolution."""

    def __init__(self, function, reading=6, conv=nn.Conv2d):
        super().__init__()
        self.first, self.function, self.last = nn.Conv2d(3, 6, 1), function, conv(reading, 2, 1)

    def forward(self, x):
        return self.last(self.function(self.first(x)))


def axes_between(*args, **kwargs):
    return {axis.name: axis for axis in find_axes(Between(*args, **kwargs), torch.zeros(2, 3, 4, 4))}


PASSED = {
    "identity": lambda x: x,
    "unary": lambda x: x.abs().clamp(max=3).double().float(),
    "expand": lambda x: x.unsqueeze(0).expand(2, -1, -1, -1, -1).sum(0),
    "squeeze": lambda x: x[:, :, :1, :1].squeeze()[..., None, None],
    "repeat": lambda x: x.repeat(1, 1, 2, 2),
    "roll along the map": lambda x: x.roll(1, 2),
    "flip the map": lambda x: x.flip(3),
    "stack": lambda x: torch.stack([x, x.relu()]).mean(0),
    "new tensor": lambda x: x + x.new_zeros(1),
    "like": lambda x: x + torch.zeros_like(x),
    "index the map": lambda x: x[:, :, torch.tensor([0, 2])],
    "mask a fixed pixel": lambda x: x.masked_fill(torch.eye(4, dtype=torch.bool), 0.0),
    "where": lambda x: torch.where(x > 0, x, x * 0.1),
    "upsample": lambda x: nn.functional.interpolate(x, scale_factor=2, mode="bilinear"),
    "grid": lambda x: nn.functional.grid_sample(x, torch.zeros(2, 3, 3, 2), align_corners=False),
    "pad": lambda x: nn.functional.pad(x, (1, 1, 1, 1), mode="reflect"),
    "maximum over pixels": lambda x: x.amax((2, 3), keepdim=True),
    "variance over pixels": lambda x: x.var((2, 3), keepdim=True),
    "gram of channels by pixels": lambda x: torch.einsum("bchw,bchw->bhw", x, x)[:, None] * x,
    "move": lambda x: x.movedim(1, 3).permute(0, 3, 1, 2).contiguous(),
    "in place": lambda x: x.relu_().mul_(2).add_(x),
    "minimum of two": lambda x: torch.minimum(x, x * 2),
    "windows": lambda x: x.unfold(2, 2, 2).amax(-1),
}


@pytest.mark.parametrize("name", PASSED)
def test_channels_pass(name):
    axis = axes_between(PASSED[name])["first"]
    assert axis.pinned is None
    assert axis.width == 6
    assert [part.tensor for part in axis.consumers] == ["last.weight"]
    assert axis.consumers[0].channels.tolist() == list(range(6))


KEPT = {
    "maximum over channels": (lambda x: x * x.amax(1, keepdim=True), "statistic"),
    "mean over channels": (lambda x: x - x.mean(1, keepdim=True), "statistic"),
    "running sum": (lambda x: x.cumsum(1), "running sum"),
    "largest channels": (lambda x: x.topk(6, 1)[0], "largest"),
    "rotation": (lambda x: x.roll(1, 1), "rotated"),
    "picked channels": (lambda x: x[:, torch.arange(5, -1, -1)], "by number"),
    "one channel": (lambda x: x * x[:, 1:2], "fixed width|broadcast"),
    "selected channel": (lambda x: x * x[:, 1, None], "by number"),
    "overwritten": (lambda x: x.clone().fill_(1.0) + x, "constants"),
    "windows": (lambda x: x.unfold(1, 1, 1)[..., 0], "windows"),
    "two channel dimensions merged": (
        lambda x: x + torch.einsum("bchw,bdhw->bcd", x, x).reshape(2, -1)[:, :1, None, None],
        "merges",
    ),
    "cropped": (lambda x: nn.functional.pad(x, (0, 0, 0, 0, -1, 1)), "cropped"),
}


@pytest.mark.parametrize("name", KEPT)
def test_channels_are_kept_for_a_reason(name):
    function, reason = KEPT[name]
    axis = axes_between(function)["first"]
    assert axis.pinned is not None
    assert any(part in axis.pinned for part in reason.split("|")), axis.pinned


def test_flipped_channels_are_read_backwards():
    axis = axes_between(lambda x: x.flip(1))["first"]
    assert axis.consumers[0].channels.tolist() == [5, 4, 3, 2, 1, 0]


def test_repeated_channels_are_read_twice():
    axis = axes_between(lambda x: x.repeat(1, 2, 1, 1), reading=12)["first"]
    assert axis.consumers[0].channels.tolist() == [*range(6), *range(6)]
    axis = axes_between(lambda x: x.repeat_interleave(2, 1), reading=12)["first"]
    assert axis.consumers[0].channels.tolist() == np.repeat(np.arange(6), 2).tolist()


def test_patches_and_back():
    unfold = axes_between(lambda x: nn.functional.unfold(x, 2)[..., None], reading=24)["first"]
    assert unfold.consumers[0].channels.tolist() == np.repeat(np.arange(6), 4).tolist()
    fold = axes_between(lambda x: nn.functional.fold(nn.functional.unfold(x, 2), (4, 4), 2))["first"]
    assert fold.pinned is None
    assert fold.width == 6
