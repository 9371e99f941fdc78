"""Networks whose forward pass asks for numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hwprune.errors import GraphError
from hwprune.graph.branches import find_branches
from hwprune.graph.coupling import find_axes

IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Asking(nn.Module):
    """Runs one of two layers, as a question of the test decides."""

    def __init__(self, question: Callable[[Asking, Tensor, Tensor], object]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.first, self.other = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(8, 4, 1)
        self.register_buffer("flag", torch.tensor(1.0))
        self.question = question

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.stem(images)
        hidden = self.first(hidden) if self.question(self, images, hidden) else self.other(hidden)
        return self.head(hidden)


@pytest.mark.parametrize(
    "question",
    [
        lambda _net, _images, hidden: hidden.mean() < 1e6,
        lambda _net, _images, hidden: float(hidden.abs().sum()) + 1,
        lambda _net, _images, hidden: int(hidden[0, 0].argmax()) + 1,
        lambda _net, _images, hidden: not torch.equal(hidden, hidden + 1),
    ],
    ids=["bool", "float", "int", "equal"],
)
@pytest.mark.parametrize("find", [find_axes, find_branches])
def test_a_choice_by_the_value_of_an_activation_is_refused(find, question) -> None:
    torch.manual_seed(0)
    with pytest.raises(
        GraphError, match=r"may depend on the values of its inputs \(in Asking\).*torch.where"
    ):
        find(Asking(question), IMAGES)


def test_a_choice_by_the_inputs_is_refused_where_it_leaves_a_layer_out() -> None:
    with pytest.raises(GraphError, match=r"other\.bias takes no part"):
        find_axes(Asking(lambda _net, images, _hidden: images.mean() > -1), IMAGES)


def test_a_layer_that_is_left_out_where_nothing_is_selected_is_refused() -> None:
    with pytest.raises(GraphError, match=r"first\.bias takes no part"):
        find_axes(Asking(lambda _net, _images, hidden: len((hidden > 1e6).nonzero())), IMAGES)


def test_a_question_about_the_inputs_that_chooses_nothing_is_allowed() -> None:
    class Checking(nn.Sequential):
        def forward(self, images: Tensor) -> Tensor:
            assert torch.isfinite(images).all()
            return super().forward(images)

    first, _last = find_axes(Checking(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)), IMAGES)
    assert first.pinned is None


@pytest.mark.parametrize(
    "question",
    [
        lambda net, _images, _hidden: net.flag > 0,
        lambda net, _images, _hidden: net.stem.weight.abs().sum().item(),
        lambda _net, _images, hidden: torch.tensor(hidden.shape[1]) == 8,
        lambda _net, _images, hidden: torch.ones_like(hidden).sum() > 0,
    ],
    ids=["buffer", "parameter", "shape", "filled"],
)
def test_values_that_no_input_decides_are_allowed(question) -> None:
    stem, *_others = find_axes(Asking(question), IMAGES)
    assert (stem.name, stem.pinned) == ("stem", None)
