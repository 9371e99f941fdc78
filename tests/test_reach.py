"""A target that is predicted to be out of reach is refused by a measurement, not by the prediction."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from profiles_here import shipped_as_here
from torch import nn

import hwprune
from hwprune.closed_loop import DeviceLoop
from hwprune.errors import TargetError
from hwprune.graph.axes import BoolArray
from hwprune.runtime.timing import Timing
from hwprune.workloads import make_model

IMAGES = torch.zeros(2, 1, 8, 8)
#: Of the dense network, in microseconds.
DENSE_US = 100.0


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets what the smallest network takes; a network of half the channels takes half as long as dense."""

    def takes(least_us: float) -> None:
        def measure(loop: DeviceLoop, networks: Mapping[str, Mapping[str, BoolArray]]) -> dict[str, Timing]:
            timings = {}
            for name, kept in networks.items():
                part = sum(int(mask.sum()) for mask in kept.values()) / sum(a.width for a in loop.axes)
                slim_us = DENSE_US * part if part > 0.3 else least_us
                median = DENSE_US if not kept else slim_us
                timings[name] = Timing(median, median, median, 9)
            return timings

        monkeypatch.setattr(DeviceLoop, "measure", measure)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return takes


def compressor(factor: float, lines: list[str]) -> hwprune.Compressor:
    model: nn.Module = make_model("resnet8", in_channels=1, image_size=8, classes=4, seed=0)
    return hwprune.Compressor(
        model, IMAGES, shipped_as_here(), hwprune.Speedup(factor), total_steps=9, notify=lines.append
    )


def test_a_target_that_the_smallest_network_meets_on_the_device_is_taken(
    device: Callable[[float], None],
) -> None:
    device(0.4)
    lines: list[str] = []
    compressor(200.0, lines)
    assert any("out of reach: measuring the smallest network" in line for line in lines)


def test_a_target_that_it_does_not_meet_is_refused_with_what_was_measured(
    device: Callable[[float], None],
) -> None:
    device(0.6)
    message = r"at least 0\.7 us, 165\.00 times faster.*\(measured for one group per axis, with 1% to spare\)"
    with pytest.raises(TargetError, match=message):
        compressor(200.0, [])


def test_a_target_that_is_predicted_in_reach_is_not_measured_for(device: Callable[[float], None]) -> None:
    device(0.6)
    lines: list[str] = []
    compressor(2.0, lines)
    assert not any("out of reach" in line for line in lines)
