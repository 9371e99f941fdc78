import pytest
import torch
from torch import nn

from hwprune.errors import GraphError, InputError
from hwprune.groups.flat import TYPICAL_SHARE
from hwprune.groups.shape import ShapeGroups


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, (1, 3), groups=4), nn.Conv2d(4, 6, 1),
        nn.Flatten(), nn.Linear(24, 5), nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 2, 3),
    )  # fmt: skip


def test_members_are_the_positions_of_convolutions_that_read_all_inputs(network):
    groups = ShapeGroups(network)
    assert groups.member_count == groups.group_count == 2 * 9 + 4
    assert [layer.name for layer in groups.layers] == ["0", "3"]
    assert {name: reason for name, _weights, reason in groups.left_dense} == {
        "2": "its filters read 4 different groups of inputs",
        "5": "a Linear has no filter shapes, two-dimensional convolutions do",
        "7": "a Conv1d has no filter shapes, two-dimensional convolutions do",
    }


def test_a_norm_is_that_of_a_position_over_all_filters(network):
    norms = ShapeGroups(network).member_norms()
    expected = [network[0].weight[:, channel, row, column].norm() for channel in range(2) for row in range(3)
                for column in range(3)]  # fmt: skip
    torch.testing.assert_close(norms[:18], torch.stack(expected).detach())
    torch.testing.assert_close(norms[18:], network[3].weight.detach().flatten(1).norm(dim=0))


def test_scaling_agrees_with_norms_and_touches_nothing_else(network):
    groups = ShapeGroups(network)
    norms, factors = groups.member_norms(), torch.rand(groups.member_count)
    others = {
        name: p.clone() for name, p in network.named_parameters() if name not in ("0.weight", "3.weight")
    }
    groups.scale_(factors)
    torch.testing.assert_close(groups.member_norms(), norms * factors)
    assert all(torch.equal(network.get_parameter(name), before) for name, before in others.items())


def test_products_are_those_of_two_points(network):
    groups = ShapeGroups(network)
    before = [tensor.detach().clone() for tensor in groups.parameters()]
    groups.scale_(torch.full((groups.member_count,), 3.0))
    products = groups.member_products(before, groups.parameters())
    assert products[1] == pytest.approx(3 * float(before[0][:, 0, 0, 1].square().sum()))


def test_momenta_follow_their_positions(network):
    groups = ShapeGroups(network)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.randn(3, 2, 4, 6)).square().sum().backward()
    optimizer.step()
    alive = torch.arange(groups.member_count) % 2 == 0
    groups.momenta_scale_(optimizer, alive)
    momentum = optimizer.state[network[0].weight]["exp_avg"]
    assert (momentum[:, 0, 0, 1] == 0).all()
    assert (momentum[:, 0, 0, 0] != 0).any()


def test_shares_put_layers_on_one_scale(network):
    groups = ShapeGroups(network)
    shares = groups.regroup(()).shares(groups.member_norms()).clone()
    assert shares.square().mean().sqrt() == pytest.approx(TYPICAL_SHARE, rel=1e-5)
    with torch.no_grad():
        network[3].weight.mul_(100)
    torch.testing.assert_close(groups.regroup(()).shares(groups.member_norms()), shares)


@pytest.mark.parametrize("count", [2, 7, 22])
def test_survivors_are_as_many_as_allowed_and_every_layer_keeps_its_largest(network, count):
    groups = ShapeGroups(network)
    alive = torch.ones(groups.member_count, dtype=torch.bool)
    norms = groups.member_norms()
    kept = groups.allowance(lambda _total: count).survivors(norms.clone(), alive)
    assert kept.sum() == count
    assert kept[norms[:18].argmax()]
    assert kept[18 + norms[18:].argmax()]
    assert sum(groups.members_alive(kept).values()) == count


def test_a_network_without_such_a_convolution_is_refused_with_the_reasons():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(GraphError, match=r"no layer has filter shapes.*0: its filters read 2.*2: a Linear"):
        ShapeGroups(model)


def test_kept_layers_stay_dense(network):
    assert ShapeGroups(network, keep=["0"]).left_dense[0] == ("0", 72, "kept on request")
    with pytest.raises(InputError, match="no such layer to keep"):
        ShapeGroups(network, keep=["1"])
