"""Factors of kernels multiply every price of their rows, and leave the rows as they were measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import hwprune
from hwprune.device.kernel_factors import KernelFactors
from hwprune.device.library import read_profile
from hwprune.device.predict import WidthPredictor, predict_operators
from hwprune.device.profile import PROFILE_FILE, DeviceProfile
from hwprune.device.profile_text import to_toml
from hwprune.device.rows import Row
from hwprune.device.table import LatencyTable
from hwprune.operators import Operator
from hwprune.runtime.local import for_this_machine

FACTORS = KernelFactors(pointwise=1.5, depthwise=2.0, linear=3.0)
NETWORK = (
    Operator("conv", 8, 16, 4, 4, 3, 3, padding=1),
    Operator("conv", 16, 16, 4, 4, 3, 3, padding=1, groups=16),
    Operator("conv", 16, 32, 4, 4),
    Operator("conv", 32, 32, 4, 4, groups=2),
    Operator("linear", 32, 8),
    Operator("relu", 8, 8),
)
ROWS_US = (100.0, 10.0, 20.0, 5.0, 1.0, 0.5)
PRICES_US = (100.0, 2 * 10.0, 1.5 * 20.0, 5.0, 3 * 1.0, 0.5)


def profile_with(factors: KernelFactors | None, among: tuple[int, ...] = (0,)) -> DeviceProfile:
    """Rows of the network, measured among several numbers of bytes alike."""
    rows = [
        Row(operator, us, among=bytes_)
        for operator, us in zip(NETWORK, ROWS_US, strict=True)
        for bytes_ in among
    ]
    profile = hwprune.load_profile("any-cpu-ort")
    latency = profile.latency.model_copy(update={"kernels": factors})
    return profile.model_copy(update={"rows": LatencyTable(tuple(rows)), "latency": latency})


@pytest.mark.parametrize("among", [(0,), (1 << 18, 1 << 22)])
def test_every_price_is_multiplied_once(among: tuple[int, ...]) -> None:
    profile = profile_with(FACTORS, among)
    chosen = profile.for_network(NETWORK, pruned=True)
    for device in (profile, chosen, chosen.for_network(NETWORK, pruned=False)):
        assert tuple(layer.latency_us for layer in predict_operators(NETWORK, device).layers) == PRICES_US
    assert predict_operators(NETWORK, profile_with(None, among)).total_us == pytest.approx(sum(ROWS_US))


def test_versions_of_other_widths_are_priced_alike() -> None:
    axes = np.zeros((len(NETWORK), 1), dtype=np.int64)
    predictor = WidthPredictor(NETWORK, axes, axes, np.array([1]), profile_with(FACTORS))
    assert float(predictor.latency_us(np.array([1]))) == pytest.approx(sum(PRICES_US))


def test_a_table_keeps_its_rows_and_a_profile_its_factors(tmp_path: Path) -> None:
    profile = profile_with(FACTORS)
    table = profile.table
    assert table is not None
    assert {row.undisturbed_us for row in table.merged(())} == set(ROWS_US)
    folder = tmp_path / profile.name
    folder.mkdir()
    table.write(folder / "latency.csv", {})
    stored = profile.latency.model_copy(update={"table": "latency.csv"})
    measured = profile.provenance.model_copy(update={"source": "measured"})
    (folder / PROFILE_FILE).write_text(
        to_toml(profile.model_copy(update={"latency": stored, "provenance": measured}))
    )
    read = read_profile(folder)
    assert read.latency.kernels == FACTORS
    assert predict_operators(NETWORK, read).total_us == pytest.approx(sum(PRICES_US))
    assert read.table is read.table  # read once, whatever the factors


def test_another_machine_has_factors_of_its_own() -> None:
    here = for_this_machine(profile_with(FACTORS), (), lambda _line: None)
    assert here.latency.kernels is None
