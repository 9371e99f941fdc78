import pytest
import torch
from torch import nn

from hwprune.errors import GraphError, InputError, TargetError
from hwprune.groups.block import BlockGroups
from hwprune.groups.flat import TYPICAL_SHARE
from hwprune.penalties import nm_mask


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.Conv2d(8, 4, 3, bias=False), nn.Conv2d(4, 4, 3, groups=4), nn.Linear(12, 5)
    )


def half(total):
    return total // 2


def test_layers_that_blocks_do_not_divide_stay_dense_with_a_reason(network):
    groups = BlockGroups(network, keep=["3"])
    assert [layer.name for layer in groups.layers] == ["1"]
    assert {name: why for name, _, why in groups.left_dense} == {
        "0": "1 inputs are no multiple of 4",
        "2": "1 inputs are no multiple of 4",
        "3": "kept on request",
    }


def test_survivors_are_the_n_largest_of_every_m_inputs(network):
    groups = BlockGroups(network)
    alive = torch.ones(groups.member_count, dtype=torch.bool)
    kept = groups.allowance(half).survivors(groups.member_norms(), alive)
    linear, convolution = network[3].weight.detach().clone(), network[1].weight.detach().clone()
    groups.scale_(kept)
    assert torch.equal(network[3].weight, linear * nm_mask(linear, 2, 4))
    mask = nm_mask(convolution.movedim(1, -1), 2, 4).movedim(-1, 1)
    assert torch.equal(network[1].weight, convolution * mask)


def test_shares_do_not_depend_on_the_scale_of_a_block(network):
    groups = BlockGroups(network)
    shares = groups.regroup(()).shares(groups.member_norms()).clone()
    torch.testing.assert_close(shares.square().mean(-1).sqrt(), torch.full((len(shares),), TYPICAL_SHARE))
    with torch.no_grad():
        network[1].weight[0].mul_(7)
    torch.testing.assert_close(groups.regroup(()).shares(groups.member_norms()), shares)


def test_a_dead_block_has_shares_of_zero(network):
    groups = BlockGroups(network)
    norms = groups.member_norms()
    norms[:4] = 0
    assert (groups.regroup(()).shares(norms)[0] == 0).all()


@pytest.mark.parametrize(("fraction", "kept"), [(0.25, 1), (0.3, 1), (0.5, 2), (0.99, 3), (1.0, 4)])
def test_n_is_the_fraction_of_m_rounded_down(network, fraction, kept):
    groups = BlockGroups(network)
    allowance = groups.allowance(lambda total: int(fraction * total + 1e-9))
    assert allowance.terms(groups.regroup(()), torch.empty(0)).budget == kept
    assert allowance.limit == kept * groups.member_count // 4
    allowance.limit = allowance.limit
    assert allowance.terms(groups.regroup(()), torch.empty(0)).budget == kept


def test_less_than_one_weight_per_block_is_refused(network):
    with pytest.raises(TargetError, match="less than one weight"):
        BlockGroups(network).allowance(lambda total: total // 5)


def test_blocks_that_fit_nowhere_are_refused_with_the_inputs_there_are(network):
    with pytest.raises(GraphError, match=r"blocks of 7.*3: 12 inputs"):
        BlockGroups(network, size=7)
    with pytest.raises(InputError, match="M >= 2"):
        BlockGroups(network, size=1)
