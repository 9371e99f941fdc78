import numpy as np
import torch
from torch import nn

from hwprune.graph.coupling import find_axes
from hwprune.surgery.rebuild import rebuild
from hwprune.surgery.unread import unread_channels
from hwprune.surgery.verify import verify

IMAGES = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """A stem that two convolutions and a linear layer read."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.first, self.second = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.side = nn.Conv2d(8, 3, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, images):
        stem = torch.sigmoid(self.norm(self.stem(images)))
        stem = stem + self.second(torch.relu(self.first(stem)))
        return self.head(stem.mean((2, 3))), self.side(stem)


def network():
    torch.manual_seed(0)
    return Residual()


def ones(axes):
    return {axis.name: 1 for axis in axes}


def zero(tensor, dim, positions):
    with torch.no_grad():
        tensor.index_fill_(dim, torch.tensor(positions), 0.0)


def test_nothing_leaves_where_some_layer_reads_it():
    model = network()
    zero(model.first.weight, 1, [1, 2])
    zero(model.side.weight, 1, [1, 2])
    axes = find_axes(model, IMAGES)
    assert unread_channels(model, axes, ones(axes)) == {}
    zero(model.head.weight, 1, [2])
    (kept,) = unread_channels(model, axes, ones(axes)).values()
    assert np.flatnonzero(~kept).tolist() == [2]


def test_what_nothing_reads_leaves_though_its_producers_live():
    model = network()
    for layer in (model.first, model.side, model.head):
        zero(layer.weight, 1, [0, 3, 4])
    zero(model.second.weight, 1, [5])
    axes = find_axes(model, IMAGES)
    kept = unread_channels(model, axes, ones(axes))
    slim = rebuild(model, axes, kept)
    assert (slim.stem.out_channels, slim.first.in_channels, slim.first.out_channels) == (5, 5, 5)
    verify(model, slim, [IMAGES])


def test_widths_stay_multiples_and_one_channel_stays():
    model = network()
    for layer in (model.first, model.side, model.head):
        zero(layer.weight, 1, [0, 3, 4])
    zero(model.second.weight, 1, list(range(6)))
    axes = find_axes(model, IMAGES)
    kept = unread_channels(model, axes, {axis.name: 4 for axis in axes})
    assert {name: int(mask.sum()) for name, mask in kept.items()} == {"first": 4}
    assert unread_channels(model, axes, ones(axes))["first"].tolist() == [True] + 5 * [False]
