import pytest
import torch
from torch import nn

from hwprune import load_profile, preview
from hwprune.graph.coupling import find_axes
from hwprune.graph.trace import trace_operators
from hwprune.plan import axis_aligns

STEP = 8


@pytest.mark.parametrize(("groups", "align"), [(32, STEP), (16, STEP // 2), (4, 1), (2, 1)])
def test_channels_of_several_filters_count_for_as_many(groups, align):
    net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.GroupNorm(groups, 32), nn.Conv2d(32, 2, 1)).eval()
    images = torch.zeros(1, 3, 8, 8)
    aligns = axis_aligns(find_axes(net, images), trace_operators(net, images), load_profile("x86-avx2-ort"))
    assert aligns["0"] == align


def test_channels_that_leave_in_sets_are_counted_as_sets():
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3, groups=4), nn.ReLU(), nn.Conv2d(32, 2, 1)
    )
    plan = preview(net.eval(), torch.zeros(1, 3, 8, 8), load_profile("x86-avx2-ort"), measure=False)
    units = {row.name: (row.width_before, row.unit) for row in plan.rows}
    assert units == {"0": (4, "sets of 4 channels"), "2": (8, "sets of 4 channels"), "4": (2, "channels")}
