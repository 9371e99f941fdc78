"""The public prediction over widths: what it says is what the narrower network would be predicted to take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import hwprune
from hwprune.device.rows import Row
from hwprune.errors import InputError
from hwprune.operators import Operator
from hwprune.runtime import sampling

IMAGES = torch.zeros(2, 3, 8, 8)


def network(first: int = 64, second: int = 48) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, first, 3), nn.ReLU(), nn.Conv2d(first, second, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(second, 10),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows by the size of operators; nothing is cached."""

    def by_size(operators: Sequence[Operator], *_arguments: object) -> list[Row]:
        return [Row(replace(each, name=""), 1.0 + sampling.bytes_of(each) / 1e3) for each in operators]

    monkeypatch.setattr(sampling, "_measure_chunk", by_size)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_widths_are_priced_as_the_networks_that_have_them() -> None:
    widths = hwprune.width_predictor(network(), hwprune.load_profile("any-cpu-ort"), IMAGES)
    assert widths.names == ("0", "2")
    assert widths.dense.tolist() == [64, 48]
    wanted = np.array([[64, 48], [64, 16], [32, 48], [16, 16]])
    built = [
        hwprune.predict(network(*map(int, each)), widths.predictor.profile, IMAGES).total_us
        for each in wanted
    ]
    assert widths.latency_us(wanted) == pytest.approx(built)
    assert len(set(built)) == len(built)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([[64]], r"shape \(networks, 2\)"),
        ([64, 48], r"shape \(networks, 2\)"),
        ([[64.0, 48.0]], "whole numbers"),
        ([[64, 48], [64, 49]], "network 1, axis 2.*expected 1 to 48, got 49"),
        ([[64, 48], [64]], r"shape \(networks, 2\)"),
        ([[0, 48]], "network 0, axis 0.*expected 1 to 64, got 0"),
    ],
)
def test_widths_that_the_network_has_not_are_refused(wrong: Sequence[Sequence[int]], message: str) -> None:
    widths = hwprune.width_predictor(network(), hwprune.load_profile("any-cpu-ort"), IMAGES)
    with pytest.raises(InputError, match=message):
        widths.latency_us(wrong)
