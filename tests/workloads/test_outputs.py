"""A network must answer images with logits for every class, or it is told before anything is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hwprune.errors import WorkloadError
from hwprune.workloads import Dataset, check_outputs, load_dataset, make_model, model_names

DIGITS = load_dataset("digits").first(8)


class Answers(nn.Module):
    """Passes the logits of a linear layer through a function."""

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Dropout())
        self.answer = answer

    def forward(self, images: Tensor) -> Any:
        return self.answer(self.layers(images))


def fail(_logits: Tensor) -> Tensor:
    raise RuntimeError("out of cheese")


WRONG: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "auxiliary": (lambda logits: (logits, logits), "got a tuple of 2"),
    "named": (lambda logits: {"logits": logits}, "got dict"),
    "too few": (lambda logits: logits[:, :9], r"expected one tensor of shape \(2, 10\).*\(2, 9\)"),
    "a map": (lambda logits: logits[:, :, None], r"\(2, 10, 1\)"),
    "one row": (lambda logits: logits[:1], r"\(1, 10\)"),
    "classes": (lambda logits: logits.argmax(1, keepdim=True).expand(2, 10), "torch.int64"),
    "fails": (fail, "RuntimeError: out of cheese"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_logits_is_told(name: str) -> None:
    answer, message = WRONG[name]
    model = Answers(answer)
    with pytest.raises(WorkloadError, match=message):
        check_outputs(model, "mine:net", DIGITS)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("name", model_names())
def test_every_built_in_network_passes_and_stays_as_it_is(name: str) -> None:
    images, labels = torch.zeros(2, 3, 32, 32), torch.zeros(2, dtype=torch.int64)
    dataset = Dataset("mine", images, labels, images, labels, 3)
    model = make_model(name, in_channels=3, image_size=32, classes=3, seed=0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    check_outputs(model, name, dataset)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training


def test_more_logits_than_classes_pass() -> None:
    check_outputs(Answers(lambda logits: torch.cat([logits, logits], 1)), "mine:net", DIGITS)
