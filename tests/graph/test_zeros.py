import pytest
import torch
from torch import nn

from hwprune.graph.trace import trace_operators

IMAGES = torch.zeros(2, 4, 8, 8)


class Called(nn.Module):
    """A function of the images and of a convolution of them."""

    def __init__(self, function):
        super().__init__()
        self.convolution = nn.Conv2d(4, 4, 1)
        self.function = function

    def forward(self, images):
        return self.function(self.convolution(images))


def kinds(function):
    return [operator.kind for operator in trace_operators(Called(function), IMAGES)]


def in_place(features):
    hidden = torch.zeros_like(features)
    hidden += features
    return hidden.relu_()


def written(features):
    hidden = torch.zeros_like(features)
    view = hidden.view(2, -1)
    view += features.view(2, -1) * 2
    return features + hidden


def elsewhere(features):
    hidden = torch.zeros_like(features)
    hidden.select(1, 0).copy_(features[:, 0])
    return features + hidden


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x + torch.zeros_like(x), ["conv"]),
        (lambda x: torch.zeros(x.shape) + x, ["conv"]),
        (lambda x: torch.relu(torch.relu(x) + torch.relu(torch.zeros(x.shape))), ["conv"]),
        (lambda x: x + torch.zeros_like(x) * x, ["conv"]),
        (in_place, ["conv"]),
        (written, ["conv", "mul", "add"]),
        (elsewhere, ["conv", "slice", "select", "copy_", "add"]),
        (lambda x: x + (torch.zeros(x.shape) + 1), ["conv", "add"]),
        (lambda x: x + torch.sigmoid(torch.zeros(x.shape)), ["conv", "add"]),
        (lambda x: torch.add(torch.zeros_like(x), x, alpha=2), ["conv", "add"]),
        (
            lambda x: x.mean((2, 3), keepdim=True) + torch.zeros(x.shape),
            ["conv", "global_average_pool", "add"],
        ),
    ],
)  # fmt: skip
def test_only_sums_with_zeros_are_no_operators(function, expected):
    found = kinds(function)
    assert [kind for kind in found if kind not in ("slice", "select", "copy_")] == [
        kind for kind in expected if kind not in ("slice", "select", "copy_")
    ]
