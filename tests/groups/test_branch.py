import pytest
import torch
from torch import nn

from hwprune.errors import GraphError
from hwprune.graph.branches import find_branches
from hwprune.groups.branch import BranchGroups
from hwprune.workloads import make_model

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def made():
    model = make_model("resnet8", in_channels=3, image_size=8, classes=5, seed=0)
    return model, BranchGroups(model, find_branches(model, IMAGES)[1])


def test_a_group_is_a_branch_with_all_of_its_weights():
    model, groups = made()
    assert groups.group_count == groups.member_count == 3
    inside = [f"blocks.{block}.{layer}." for block in range(3) for layer in ("conv1", "bn1", "conv2", "bn2")]
    expected = [p for name, p in model.named_parameters() if name.startswith(tuple(inside))]
    assert {id(tensor) for tensor in groups.parameters()} == {id(tensor) for tensor in expected}


def test_norms_do_not_grow_with_the_width():
    _, groups = made()
    norms = groups.member_norms()
    assert float(norms.max() / norms.min()) < 1.5
    products = groups.member_products(groups.parameters(), groups.parameters())
    torch.testing.assert_close(products, norms.square())


def test_scaling_one_branch_leaves_the_others_and_zero_takes_it_out_of_the_function():
    model, groups = made()
    model.eval()
    before = groups.member_norms()
    groups.scale_(torch.tensor([1.0, 0.5, 0.0]))
    torch.testing.assert_close(groups.member_norms(), before * torch.tensor([1.0, 0.5, 0.0]))
    features = model.blocks[1](model.blocks[0](model.stem(IMAGES)))
    block = model.blocks[2]
    assert torch.equal(block(features), torch.relu(block.shortcut(features)))


def test_momenta_of_dead_branches_are_cleared():
    model, groups = made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(IMAGES).square().mean().backward()
    optimizer.step()
    groups.momenta_scale_(optimizer, torch.tensor([True, False, True]))
    cleared = optimizer.state[model.blocks[1].conv1.weight]["momentum_buffer"]
    kept = optimizer.state[model.blocks[0].conv1.weight]["momentum_buffer"]
    assert not cleared.any()
    assert kept.any()


def test_every_living_branch_is_a_candidate_and_shares_add_up():
    _, groups = made()
    alive = torch.tensor([True, False, True])
    norms = groups.member_norms() * alive
    grouping = groups.bundle(norms, alive)
    shares = grouping.shares(norms)
    assert grouping.count == 2
    assert float(shares.square().sum()) == pytest.approx(1.0)
    factors = grouping.to_members(torch.tensor([0.5, 0.25]), other=1.0)
    assert factors.tolist() == [0.5, 1.0, 0.25]
    again = groups.regroup(grouping.state())
    torch.testing.assert_close(again.shares(norms), shares)
    ranked = groups.ranked_shares(norms, alive)
    assert [len(scores) for scores in ranked] == [1, 0, 1]
    assert groups.strongest(norms, alive, groups.widths_of(alive)).tolist() == alive.tolist()
    assert groups.members_alive(alive) == {"blocks.0": 1, "blocks.1": 0, "blocks.2": 1}


def test_a_network_without_branches_is_told():
    with pytest.raises(GraphError, match="no residual sum"):
        BranchGroups(nn.Sequential(nn.Linear(3, 2)), ())
