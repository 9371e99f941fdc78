"""What verification says of a network that is wrong."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hwprune.errors import VerificationError
from hwprune.graph.coupling import find_axes
from hwprune.graph.twin import copy_of
from hwprune.surgery.rebuild import rebuild
from hwprune.surgery.verify import verify

IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(0, 20, (2, 4), generator=torch.Generator().manual_seed(0))


class Embedded(nn.Sequential):
    """As many tokens as channels stay, which tells their dimensions apart by nothing but what was cut."""

    def __init__(self) -> None:
        super().__init__(nn.Embedding(20, 8), nn.ReLU(), nn.Linear(8, 3))


def transposed() -> nn.Module:
    return nn.Sequential(nn.ConvTranspose2d(3, 8, 3, bias=False), nn.ReLU(), nn.Conv2d(8, 3, 1))


@pytest.mark.parametrize(("make", "inputs"), [(Embedded, TOKENS), (transposed, IMAGES)])
def test_a_layer_whose_second_dimension_makes_channels_is_named(
    make: Callable[[], nn.Module], inputs: Tensor
) -> None:
    torch.manual_seed(0)
    model = make().eval()
    axes = find_axes(model, inputs)
    kept = {"0": np.arange(8) < 4}
    slim = rebuild(model, axes, kept)
    with torch.no_grad():
        slim[0].weight += 1.0
    with pytest.raises(VerificationError, match="in layer 0"):
        verify(model, slim, [inputs], axes=axes, kept=kept)


class Repeating(nn.Module):
    """Repeats a width as a number in its last module."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.tail = nn.Sequential(nn.Conv2d(8, 4, 1), Checked())

    def forward(self, images: Tensor) -> Tensor:
        return self.tail(self.stem(images))


class Checked(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return values.reshape(1, 4, 36)


def test_a_slim_network_that_raises_is_a_verification_error_with_its_layer() -> None:
    model = Repeating().eval()
    slim = copy_of(model)
    slim.tail[0] = nn.Conv2d(8, 2, 1)
    slim.tail[0].out_channels = 2
    with pytest.raises(
        VerificationError, match=r"does not run .*\(in Repeating\.tail\.1\).*RuntimeError: shape"
    ):
        verify(model, slim, [IMAGES[:1]])


def test_running_statistics_of_single_images_are_compared_in_training_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True, track_running_stats=True))
    wrong = copy_of(model.eval())
    with torch.no_grad():
        wrong[1].running_mean += 1.0  # what evaluation subtracts,
        wrong[1].bias += wrong[1].weight / (wrong[1].running_var + wrong[1].eps).sqrt()  # and gives back
    with pytest.raises(VerificationError, match="with batch statistics"):
        verify(model, wrong, [IMAGES])
