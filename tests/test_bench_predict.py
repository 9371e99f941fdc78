"""The prediction answers as fast as selection asks."""

from __future__ import annotations

import importlib.util
import statistics
from pathlib import Path

import pytest

import hwprune
from hwprune.cli.profile_networks import make_networks

TOOL = Path(__file__).parent.parent / "tools" / "bench_predict.py"


@pytest.mark.slow
def test_ten_thousand_width_vectors_a_second_are_priced_for_resnet18() -> None:
    spec = importlib.util.spec_from_file_location("bench_predict", TOOL)
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    (network,) = make_networks(["resnet18:1x28x28"]).values()
    predictor, groups = bench.make_predictor(network, hwprune.load_profile("x86-avx2-ort"))
    found = bench.rates(predictor, groups, vectors=4000, calls=5)
    assert statistics.median(found) > 10_000
