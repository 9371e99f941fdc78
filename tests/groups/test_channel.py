import numpy as np
import pytest
import torch
from torch import nn

from hwprune.errors import GraphError
from hwprune.graph.coupling import find_axes
from hwprune.groups.channel import ChannelGroups
from hwprune.workloads import make_model


@pytest.fixture
def network():
    return make_model("resnet8", in_channels=1, image_size=8, classes=10, seed=0)


def groups_of(model, align=8):
    axes = find_axes(model, torch.zeros(1, 1, 8, 8))
    return ChannelGroups(model, axes, {axis.name: align for axis in axes})


def test_norms_gather_filter_bias_and_norm_over_all_tied_producers():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    axes = find_axes(model, torch.zeros(1, 1, 8, 8))
    groups = ChannelGroups(model, axes, {axis.name: 1 for axis in axes})
    expected = [
        torch.cat([p[j].flatten() for p in (model[0].weight, model[0].bias, model[1].weight, model[1].bias)])
        for j in range(4)
    ]
    torch.testing.assert_close(groups.member_norms(), torch.stack([part.norm() for part in expected]))


def test_scaling_by_zero_makes_a_channel_vanish(network):
    groups = groups_of(network)
    factors = torch.ones(groups.member_count)
    factors[3] = 0
    groups.scale_(factors)
    norms = groups.member_norms()
    assert norms[3] == 0
    assert (norms[torch.arange(len(norms)) != 3] > 0).all()


def test_bundles_follow_rank_and_spare_the_strongest(network):
    groups = groups_of(network)
    norms = torch.rand(groups.member_count, generator=torch.Generator().manual_seed(0))
    bundles = groups.bundle(norms, torch.ones(groups.member_count, dtype=torch.bool))
    width = int(groups.widths[0])
    first = bundles.of_member[:width]
    assert (first == -1).sum() == 8
    assert norms[:width][first == -1].min() >= norms[:width][first >= 0].max()
    assert bundles.count == groups.group_count - len(groups.axes)
    sizes = torch.bincount(bundles.of_member[bundles.of_member >= 0])
    assert set(sizes.tolist()) == {8}


def test_dead_members_never_return(network):
    groups = groups_of(network)
    alive = torch.ones(groups.member_count, dtype=torch.bool)
    alive[:8] = False
    bundles = groups.bundle(torch.ones(groups.member_count), alive)
    assert (bundles.of_member[:8] == -1).all()
    kept = groups.strongest(torch.ones(groups.member_count), alive, groups.widths)
    assert not kept[:8].any()
    assert groups.widths_of(kept)[0] == groups.widths[0] - 8


def test_shares_put_layers_on_one_scale(network):
    groups = groups_of(network)
    alive = torch.ones(groups.member_count, dtype=torch.bool)
    bundles = groups.bundle(groups.member_norms(), alive)
    before = bundles.shares(groups.member_norms())
    start, stop = int(groups.starts[1]), int(groups.starts[2])
    factors = torch.ones(groups.member_count)
    factors[start:stop] = 5
    groups.scale_(factors)
    torch.testing.assert_close(bundles.shares(groups.member_norms()), before)


def test_nothing_to_prune_says_why():
    model = nn.Sequential(nn.Conv2d(1, 4, 3))
    axes = find_axes(model, torch.zeros(1, 1, 8, 8))
    with pytest.raises(GraphError, match=r"nothing can be pruned.*network output"):
        ChannelGroups(model, axes, {axis.name: 1 for axis in axes})


def test_kept_masks_are_per_axis(network):
    groups = groups_of(network)
    alive = torch.arange(groups.member_count) % 2 == 0
    kept = groups.kept(alive)
    assert [mask.size for mask in kept.values()] == groups.widths.tolist()
    assert np.concatenate(list(kept.values())).sum() == int(alive.sum())
