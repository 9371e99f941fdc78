import pytest
import torch
from torch import nn

from hwprune.graph.branches import find_branches, without_branches
from hwprune.graph.trace import operators_of
from hwprune.workloads import make_model

IMAGES = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def conv(inputs=4, outputs=4, **options):
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


class Network(nn.Module):
    """Layers by name, and a function of them and the images."""

    def __init__(self, function, **layers):
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self.function = function

    def forward(self, images):
        return self.function(self.layers, images)


def found(function, **layers):
    return find_branches(Network(function, **layers), IMAGES)[1]


def test_the_built_in_residual_network_has_a_branch_for_every_block():
    model = make_model("resnet20", in_channels=4, image_size=8, classes=10, seed=0)
    _, branches = find_branches(model, IMAGES)
    assert [branch.name for branch in branches] == [f"blocks.{index}" for index in range(9)]
    assert all(branch.pinned is None for branch in branches)
    # The shortcuts of the blocks that narrow the map stay.
    assert branches[3].modules == ("blocks.3.conv1", "blocks.3.bn1", "blocks.3.conv2", "blocks.3.bn2")
    named = dict(model.named_parameters())
    assert set(branches[3].parameters) == {name for name in named if name.startswith(branches[3].modules)}


def test_what_is_split_off_for_another_reader_is_no_branch():
    def split(layers, x):
        added, other = layers.conv(x).chunk(2, 1)
        return torch.cat([x + added, other], 1)

    assert found(split, conv=conv(4, 8)) == ()


def test_a_plain_network_has_none():
    model = make_model("mobilenetv1", in_channels=4, image_size=8, classes=10, seed=0)
    assert find_branches(model, IMAGES)[1] == ()


def test_the_longer_way_is_the_branch_and_the_other_stays():
    (branch,) = found(
        lambda layers, x: layers.short(x) + layers.two(layers.one(x)),
        short=nn.Conv2d(4, 4, 1),
        one=conv(),
        two=conv(),
    )
    assert branch.pinned is None
    assert branch.modules == ("layers.one", "layers.two")


def test_branches_of_one_module_go_by_their_own_layers():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(4)
            self.first, self.second = conv(), conv()

        def forward(self, images):
            images = images + self.first(self.norm(images))
            return images + self.second(images)

    _, branches = find_branches(nn.Sequential(Twice()), IMAGES)
    assert [(branch.name, branch.modules) for branch in branches] == [
        ("0.first", ("0.norm", "0.first")),
        ("0.second", ("0.second",)),
    ]


REFUSALS = {
    "is used elsewhere too": lambda layers, x: layers.one(x) + layers.two(layers.one(x)),
    "the sum broadcasts": lambda layers, x: x.mean((2, 3), keepdim=True) + layers.one(x),
    "the sum has a factor": lambda layers, x: torch.add(x, layers.one(x), alpha=0.5),
    "it holds other branches": lambda layers, x: x + layers.two(x + layers.one(x)),
    "its layers do other things too": lambda layers, x: (
        x + nn.functional.conv2d(x, layers.one.weight, padding=1)
    ),
}


@pytest.mark.parametrize("reason", REFUSALS)
def test_what_must_stay_says_why(reason):
    branches = found(REFUSALS[reason], one=conv(), two=conv())
    assert reason in {str(branch.pinned).removeprefix("layers.one.weight ") for branch in branches}


def test_what_the_network_returns_or_others_read_is_no_branch():
    def returned(layers, x):
        branch = layers.one(x)
        return x + branch, branch

    assert found(returned, one=conv()) == ()
    assert found(lambda layers, x: (x + (branch := layers.one(x))) * branch, one=conv()) == ()


def test_parameters_that_are_added_are_no_branch():
    assert (
        found(lambda layers, x: layers.one(x) + layers.two.bias.view(1, 4, 1, 1), one=conv(), two=conv())
        == ()
    )


def test_two_inputs_that_meet_have_no_branch():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = conv(), conv()

        def forward(self, left, right):
            return self.one(left) + self.two(right)

    (branch,) = find_branches(Sum(), [IMAGES, IMAGES.clone()])[1]
    assert branch.pinned == "it has nothing in common with what it is added to"


def test_a_recording_without_branches_runs_fewer_operators():
    model = make_model("resnet20", in_channels=4, image_size=8, classes=10, seed=0)
    recording, branches = find_branches(model, IMAGES)
    dense = operators_of(recording)
    less = operators_of(without_branches(recording, branches[:1]))
    assert [operator.kind for operator in dense].count("conv") == 21
    assert [operator.kind for operator in less].count("conv") == 19
    assert operators_of(without_branches(recording, [])) == dense
    none = operators_of(without_branches(recording, branches))
    # The stem, two shortcuts with their activations, the pooling and the head.
    assert [operator.kind for operator in none] == ["conv", "conv", "conv", "global_average_pool", "linear"]
