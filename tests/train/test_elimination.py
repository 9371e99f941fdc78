"""Channels in the order in which the layers behind them miss them."""

import pytest
import torch
from torch import nn

from hwprune.graph.coupling import find_axes
from hwprune.train.elimination import RIDGE, eliminate


class Chain(nn.Module):
    """Two convolutions and a head, each of which reads the one before."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, width, 3, padding=1)
        self.second = nn.Conv2d(width, 5, 3)
        self.head = nn.Linear(5 * 16, 3)

    def forward(self, images):
        maps = torch.relu(self.second(torch.relu(self.first(images))))
        return self.head(maps.flatten(1))


@pytest.fixture
def images():
    return torch.randn(64, 2, 6, 6, generator=torch.Generator().manual_seed(0))


def orders_of(model, images, align=1, alive=None):
    axes = [axis for axis in find_axes(model, images[:2]) if axis.pinned is None]
    flags = [torch.ones(axis.width, dtype=torch.bool) for axis in axes] if alive is None else alive
    return eliminate(model, axes, [align] * len(axes), flags, images)


def unfolded(layer, inputs):
    columns = nn.functional.unfold(inputs, layer.kernel_size, padding=layer.padding)
    rows = columns.transpose(1, 2).flatten(0, 1)
    return torch.cat([rows, torch.ones(len(rows), 1)], dim=1).double()


def refitted(layer, inputs, channels):
    """The part of a layer's outputs that is lost when it reads some channels only, solved from nothing."""
    rows = unfolded(layer, inputs)
    weights = torch.cat([layer.weight.flatten(1), layer.bias[:, None]], dim=1).double().detach()
    kernel = layer.weight[0, 0].numel()
    columns = [channel * kernel + place for channel in channels for place in range(kernel)] + [
        rows.shape[1] - 1
    ]
    moments = rows.T @ rows / len(rows)
    diagonal = moments.diagonal()
    held = moments + torch.diag(RIDGE * (diagonal + 1e-6 * diagonal.mean()))
    # The weights that stay, drawn to where they are now, and those that leave, drawn to zero by their loss.
    gone = [column for column in range(rows.shape[1]) if column not in columns]
    change = torch.linalg.solve(held[columns][:, columns], held[columns][:, gone] @ weights[:, gone].T)
    new = torch.zeros_like(weights)
    new[:, columns] = weights[:, columns] + change.T
    step = new - weights
    outputs = rows @ weights.T
    energy = (outputs - outputs.mean(0)).square().sum() / len(rows)
    return float(((step @ held) * step).sum() / energy)


def test_what_is_lost_is_what_a_new_fit_would_lose(images):
    torch.manual_seed(0)
    model = Chain().eval()
    order = orders_of(model, images)["first"]
    inputs = torch.relu(model.first(images)).detach()
    for left in range(1, 6):
        expected = refitted(model.second, inputs, sorted(order.channels[:left]))
        assert order.lost[left] == pytest.approx(expected, rel=1e-4)
    assert order.lost[6] == 0
    assert all(more >= less for more, less in zip(order.lost, order.lost[1:], strict=False))


def test_the_first_to_leave_is_the_one_that_is_missed_least(images):
    torch.manual_seed(1)
    model = Chain().eval()
    order = orders_of(model, images)["first"]
    inputs = torch.relu(model.first(images)).detach()
    alone = [
        refitted(model.second, inputs, [other for other in range(6) if other != gone]) for gone in range(6)
    ]
    assert order.channels[-1] == min(range(6), key=alone.__getitem__)


def test_a_copy_of_another_channel_leaves_first_however_large(images):
    torch.manual_seed(0)
    model = Chain().eval()
    with torch.no_grad():
        model.first.weight[4] = 3 * model.first.weight[1]
        model.first.bias[4] = 3 * model.first.bias[1]
    order = orders_of(model, images)["first"]
    assert order.channels[-1] in (1, 4)
    assert order.lost[5] < 0.01 < order.lost[4]


def test_of_two_that_stand_in_for_each_other_only_one_leaves_in_a_group(images):
    torch.manual_seed(0)
    model = Chain(width=8).eval()
    with torch.no_grad():
        for copy, original in ((4, 1), (5, 2)):
            model.first.weight[copy] = 3 * model.first.weight[original]
            model.first.bias[copy] = 3 * model.first.bias[original]
    order = orders_of(model, images, align=2)["first"]
    first_to_leave = set(order.channels[-2:])
    assert len(first_to_leave & {1, 4}) == len(first_to_leave & {2, 5}) == 1
    assert order.lost[3] < 0.01 < order.lost[2]


def test_moments_are_exact_where_the_network_computes_in_half_precision(images):
    torch.manual_seed(0)
    model = Chain().eval()
    exact = orders_of(model, images)["first"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = orders_of(model, images)["first"]
    assert rounded.lost == pytest.approx(exact.lost, rel=0.05, abs=1e-3)


def test_what_few_samples_tell_is_not_believed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 8)).eval()
    many, few = torch.randn(4096, 4), torch.randn(16, 4)
    # Sixteen samples are made up for by any sixteen channels, the others would seem to be worth nothing.
    assert orders_of(model, few)["0"].lost[16] > 0.5 * orders_of(model, many)["0"].lost[16] > 0


def test_an_axis_without_a_living_channel_has_no_order(images):
    torch.manual_seed(0)
    alive = [torch.zeros(6, dtype=torch.bool), torch.ones(5, dtype=torch.bool)]
    assert "first" not in orders_of(Chain().eval(), images, alive=alive)


def test_a_reader_whose_outputs_are_constant_is_no_reader(images):
    torch.manual_seed(0)
    model = Chain().eval()
    with torch.no_grad():
        model.first.weight.zero_()
        model.first.bias.fill_(1.0)
        model.second.padding = (0, 0)
    assert "first" not in orders_of(model, images)


def test_channels_that_a_linear_layer_reads_after_flattening_have_all_their_places(images):
    torch.manual_seed(0)
    model = Chain().eval()
    with torch.no_grad():
        model.head.weight[:, 2 * 16 : 3 * 16] = 0
    order = orders_of(model, images)["second"]
    assert order.channels[-1] == 2
    assert order.lost[4] == pytest.approx(0, abs=1e-9)


def test_groups_leave_together_and_the_odd_one_first(images):
    torch.manual_seed(0)
    order = orders_of(Chain(width=7).eval(), images, align=3)["first"]
    assert len(order.channels) == 7
    assert len(order.lost) == 4


def test_dead_channels_are_no_part_of_the_order(images):
    torch.manual_seed(0)
    model = Chain().eval()
    with torch.no_grad():
        model.first.weight[[0, 3]] = 0
        model.first.bias[[0, 3]] = 0
    alive = [torch.tensor([False, True, True, False, True, True]), torch.ones(5, dtype=torch.bool)]
    order = orders_of(model, images, alive=alive)["first"]
    assert sorted(order.channels) == [1, 2, 4, 5]
    assert len(order.lost) == 5


class Stream(nn.Module):
    """A residual stream that three layers read, one of them only half of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 1)
        self.branch = nn.Conv2d(6, 6, 3, padding=1)
        self.lower = nn.Conv2d(3, 4, 1)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, images):
        stream = torch.relu(self.stem(images))
        stream = stream + self.branch(stream)
        lower, _ = stream.chunk(2, 1)
        return self.head(torch.relu(stream)) + self.lower(lower)


def test_everybody_who_reads_an_axis_counts(images):
    torch.manual_seed(0)
    model = Stream().eval()
    whole = orders_of(model, images)["stem"]
    with torch.no_grad():
        model.branch.weight *= 100  # of its own energy that changes nothing
    scaled = orders_of(model, images)["stem"]
    assert len(whole.channels) == len(scaled.channels) >= 3
    assert whole.lost[0] >= 2  # every reader loses all


def test_an_axis_that_only_grouped_layers_read_has_no_order(images):
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 2, 1)).eval()
    assert "0" not in orders_of(model, images)


def test_the_network_is_left_as_it_is(images):
    model = Chain().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    orders_of(model, images)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
