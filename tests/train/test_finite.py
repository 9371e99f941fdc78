"""Weights that are no numbers end a training before they are kept."""

import pytest
import torch
from torch import nn

from hwprune.errors import TrainingError
from hwprune.train.finite import check_finite
from hwprune.train.loop import Recipe, Trainer
from hwprune.workloads import load_dataset, make_model


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_the_first_parameter_is_named(value):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    check_finite(model)
    with torch.no_grad():
        model[1].weight[0, 1] = value
    with pytest.raises(TrainingError, match=r"in 1\.weight"):
        check_finite(model)


def test_buffers_may_be_infinite_but_must_be_numbers():
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    check_finite(model)
    model.mask[0] = float("nan")
    with pytest.raises(TrainingError, match="in mask"):
        check_finite(model)


def test_an_infinite_gradient_in_the_last_batch_ends_the_epoch():
    def spoiling(optimizer):
        def spoil(*_arguments):
            optimizer.param_groups[0]["params"][0].grad.fill_(float("inf"))

        optimizer.register_step_pre_hook(spoil)
        return optimizer

    dataset = load_dataset("digits").first(64)
    model = make_model("lenet5", in_channels=1, image_size=8, classes=10, seed=0)
    trainer = Trainer(model, dataset, Recipe(1, 64), spoiling)
    with pytest.raises(TrainingError, match="weights are not finite"):
        trainer.run_epoch()
    assert not trainer.done
