"""Where the inputs of a network are put before it is called."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from hwprune.errors import GraphError
from hwprune.graph.record import beside, call_model, record


def test_inputs_follow_a_network_that_was_moved() -> None:
    net = nn.Linear(3, 2).to("meta")
    image, mask = torch.zeros(2, 3), torch.ones(2)
    assert beside(net, image).is_meta
    named = beside(net, {"x": image, "deep": [mask, 3]})
    assert named["x"].is_meta
    assert named["deep"][0].is_meta
    assert named["deep"][1] == 3
    assert call_model(net, (image,)).is_meta
    recording = record(net, image)
    assert {value.index for value in recording.inputs} <= {
        value.index for call in recording.calls for value in call.inputs
    }


def test_inputs_stay_where_they_are_for_a_network_on_several_devices_or_without_parameters() -> None:
    image = torch.zeros(2, 3)
    spread = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2).to("meta"))
    assert beside(spread, image) is image
    assert beside(nn.ReLU(), image) is image


def test_the_innermost_module_that_raises_is_named() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.Sequential(nn.ReLU(), nn.Linear(5, 2)))
    with pytest.raises(GraphError, match=r"\(in Sequential\.1\.1\)"):
        record(net, torch.zeros(2, 3))


def test_an_error_that_cannot_be_hashed_is_told_all_the_same() -> None:
    @dataclass
    class Odd(Exception):  # noqa: N818
        number: int

    class Raising(nn.Module):
        def forward(self, _images: torch.Tensor) -> torch.Tensor:
            raise Odd(3)

    with pytest.raises(GraphError, match=r"\(in Sequential\.0\).*Odd"):
        record(nn.Sequential(Raising()), torch.zeros(2, 3))
