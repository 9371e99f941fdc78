"""What a network does wrong in training is told, and found on a trial batch that changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hwprune.errors import TrainingError
from hwprune.train.loop import Recipe, Trainer, rehearse
from hwprune.workloads import load_dataset, make_model

DIGITS = load_dataset("digits").first(33)
RECIPE = Recipe(1, 32)


class InTraining(nn.Module):
    """Does something to its logits in training mode only."""

    def __init__(self, act: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10), nn.Dropout())
        self.act = act

    def forward(self, images: Tensor) -> Any:
        logits = self.layers(images)
        return self.act(logits) if self.training else logits


def fail(_logits: Tensor) -> Tensor:
    raise ZeroDivisionError("out of cheese")


def spoil(logits: Tensor) -> Tensor:
    """Overwrites what the gradient needs."""
    probabilities = torch.sigmoid(logits)
    probabilities.mul_(2)
    return probabilities


WRONG: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "auxiliary": (lambda logits: (logits, logits), "returns no logits in training mode.*got tuple"),
    "fails": (fail, "fails in training .*ZeroDivisionError: out of cheese"),
    "one row": (lambda logits: logits[:1], "fails in training .*ValueError"),
    "in place": (spoil, "fails in training .*RuntimeError: .*inplace"),
    "not finite": (lambda logits: logits * float("nan"), "the loss is not finite"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_goes_wrong_in_training_is_told(name: str) -> None:
    act, message = WRONG[name]
    with pytest.raises(TrainingError, match=f"(?s){message}"):
        rehearse(InTraining(act), DIGITS, RECIPE)
    with pytest.raises(TrainingError, match=f"(?s){message}"):
        Trainer(InTraining(act), DIGITS, RECIPE).run_epoch()


@pytest.mark.parametrize(("images", "batch_size"), [(33, 1), (1, 32), (3, 2)])
def test_a_batch_of_a_single_image_is_told_where_a_batch_norm_has_one_value(
    images: int, batch_size: int
) -> None:
    model = make_model("vgg16", in_channels=1, image_size=8, classes=10, seed=0)
    with pytest.raises(TrainingError, match=r"a batch of 1 image\).*--batch-size and --train-images"):
        rehearse(model, DIGITS.first(images), Recipe(1, batch_size))


def test_a_trial_leaves_the_network_and_the_random_numbers_as_they_were() -> None:
    torch.manual_seed(0)
    model = InTraining(lambda logits: logits).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = torch.rand(3, generator=torch.Generator().set_state(torch.get_rng_state()))
    rehearse(model, DIGITS, RECIPE)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
