"""Comparing what networks return: nothing may hide a difference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hwprune.errors import GraphError, VerificationError
from hwprune.graph.coupling import find_axes
from hwprune.graph.twin import copy_of
from hwprune.surgery.outputs import compare, outputs_of, wrong_by
from hwprune.surgery.prove import prove
from hwprune.surgery.rebuild import rebuild
from hwprune.surgery.trial import zeroed
from hwprune.surgery.verify import verify

IMAGES = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@dataclass
class Boxed:
    """A container that PyTorch does not know."""

    logits: Tensor


class Held:
    """Another one."""

    def __init__(self, logits: Tensor) -> None:
        self.inner = {"logits": [logits]}


class Returning(nn.Module):
    """Dead channels of its first layer are a half everywhere, which padding does not let a bias take up."""

    def __init__(self, wrap: Callable[[Tensor], Any], activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 4, 3, padding=1)
        self.wrap, self.activation = wrap, activation

    def forward(self, images: Tensor) -> Any:
        return self.wrap(self.second(self.activation(self.first(images))).mean((2, 3)))


WRAPS: dict[str, Callable[[Tensor], Any]] = {
    "dataclass": Boxed,
    "object": Held,
    "beside large ones": lambda logits: (logits, 1e6 * torch.ones(1)),
    "small": lambda logits: 1e-7 * logits,
    "flags, too": lambda logits: (logits > 0, logits),
    "complex": lambda logits: torch.complex(torch.zeros_like(logits), logits),
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_a_wrong_cut_is_seen_in_whatever_is_returned(wrap: Callable[[Tensor], Any]) -> None:
    torch.manual_seed(1)
    model = Returning(wrap, torch.sigmoid).eval()
    axes = find_axes(model, IMAGES)
    (first,) = (axis for axis in axes if axis.name == "first")
    (proven, *_others) = prove(model, [first], IMAGES, {"first": 1}, fold=True).axes
    assert proven.pinned is not None
    assert "still acts" in proven.pinned
    kept = {"first": np.arange(16) < 8}
    with zeroed(model, first, kept["first"]), pytest.raises(VerificationError):
        verify(model, rebuild(model, [first], kept), [IMAGES], axes=[first], kept=kept)


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_a_right_cut_is_right_in_whatever_is_returned(wrap: Callable[[Tensor], Any]) -> None:
    torch.manual_seed(1)
    model = Returning(wrap, torch.relu).eval()
    (first,) = (axis for axis in find_axes(model, IMAGES) if axis.name == "first")
    assert prove(model, [first], IMAGES, {"first": 1}).axes[0].pinned is None
    kept = {"first": np.arange(16) < 8}
    with zeroed(model, first, kept["first"]):
        verify(model, rebuild(model, [first], kept), [IMAGES], axes=[first], kept=kept)


def test_a_network_that_returns_no_tensor_cannot_be_compared() -> None:
    class Silent(nn.Module):
        def forward(self, _images: Tensor) -> list[str]:
            return ["nothing"]

    with pytest.raises(GraphError, match="returns no tensor"):
        outputs_of(Silent(), IMAGES)
    assert compare([], []).relative == float("inf")


def test_rounding_is_no_mistake_and_a_small_mistake_is_one() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4096, 64), nn.Linear(64, 64), nn.Linear(64, 1))
    inputs = torch.randn(8, 4096)
    shuffled, order = copy_of(model), torch.randperm(4096)

    class Reordered(nn.Module):
        """The same sums in another order."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = shuffled
            shuffled[0].weight.data = shuffled[0].weight.data[:, order]

        def forward(self, values: Tensor) -> Tensor:
            return self.layers(values[:, order])

    assert wrong_by(model, Reordered(), inputs) is None
    wrong = copy_of(model)
    with torch.no_grad():
        wrong[2].bias += 1e-5 * float(model(inputs).abs().max())
    assert wrong_by(model, wrong, inputs) is not None


def test_statistics_of_a_single_image_are_compared_on_two() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    with pytest.raises(ValueError, match="more than 1 value"):
        model.train()(IMAGES[:1])
    verify(model.eval(), copy_of(model), [IMAGES[:1]])
    wrong = copy_of(model)
    with torch.no_grad():
        wrong[2].momentum = 0.5
        wrong[2].running_mean += 1.0  # what evaluation subtracts,
        wrong[2].bias += wrong[2].weight / (wrong[2].running_var + wrong[2].eps).sqrt()  # and gives back
    with pytest.raises(VerificationError, match="with batch statistics"):
        verify(model, wrong, [IMAGES[:1]])


class Insisting(nn.Module):
    """Asks for single precision by name."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm, self.head = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.convolution(images)).relu().mean((2, 3)).float())


def test_a_network_that_insists_on_single_precision_is_compared_in_it() -> None:
    torch.manual_seed(0)
    model = Insisting().eval()
    verify(model, copy_of(model), [IMAGES])
    wrong = copy_of(model)
    with torch.no_grad():
        wrong.head.weight[0] *= 1.01
    with pytest.raises(VerificationError):
        verify(model, wrong, [IMAGES])


def test_constants_that_are_none_with_batch_statistics_are_not_folded() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16, affine=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 4)).eval()
    axes = prove(model, find_axes(model, IMAGES), IMAGES, {"0": 1, "5": 1}, fold=True).axes
    assert axes[0].pinned is not None


def test_a_small_constant_is_folded_before_it_adds_up() -> None:
    class AtLeast(nn.Module):
        def forward(self, values: Tensor) -> Tensor:
            return values.clamp_min(3e-4)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 128, 3), AtLeast(), nn.Conv2d(128, 16, 1), nn.ReLU()).eval()
    proven = prove(model, find_axes(model, IMAGES), IMAGES, {"0": 1, "2": 1}, fold=True)
    assert proven.axes[0].pinned is None
    assert proven.folded == {"0": ("2",)}
