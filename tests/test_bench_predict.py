"""The prediction answers as fast as selection asks."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from types import ModuleType

import pytest

import hwprune
from hwprune.cli.profile_networks import make_networks


@pytest.mark.slow
def test_ten_thousand_width_vectors_a_second_are_priced_for_resnet18(
    load_tool: Callable[[str], ModuleType],
) -> None:
    bench = load_tool("bench_predict")
    (network,) = make_networks(["resnet18:1x28x28"]).values()
    profile = hwprune.load_profile("x86-avx2-ort")
    predictor = hwprune.width_predictor(network.model, profile, network.example)
    found = bench.rates(predictor, vectors=4000, calls=5)
    assert statistics.median(found) > 10_000
