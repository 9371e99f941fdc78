"""The prediction fitted to measured versions of the network at hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hwprune
from hwprune import kept_measurements, network_calibration
from hwprune.device.correction import Correction
from hwprune.groups.costs import Widths
from hwprune.kept_measurements import Measurement
from hwprune.network_calibration import calibrate
from hwprune.runtime.patience import Patience
from hwprune.runtime.timing import Timing


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's cache, empty for every test."""
    monkeypatch.setattr(kept_measurements, "user_cache_path", lambda _name: tmp_path)


def timing(latency_us: float) -> Timing:
    return Timing(latency_us, latency_us, latency_us, 9)


class Counting:
    """Has one axis, and counts how often it is measured."""

    def __init__(self, axis: str) -> None:
        self.axis, self.measured = axis, 0
        self.patience = Patience(pytest.fail)
        self.profile = hwprune.load_profile("x86-avx2-ort")

    def kept(self, widths: Widths) -> dict[str, Any]:
        return {self.axis: np.arange(8) < widths[0]}

    def measure(self, networks: dict[str, Any]) -> dict[str, Timing]:
        self.measured += 1
        return {name: timing(float(kept[self.axis].sum())) for name, kept in networks.items()}


class Proportional:
    """Predicts a microsecond per channel."""

    operators = ()

    def latency_us(self, widths: Widths) -> Any:
        return np.asarray(widths).sum(-1).astype(float)

    def weights_mib(self, widths: Widths) -> Any:
        return np.zeros(np.shape(widths)[:-1])

    def corrected(self, _correction: Correction) -> "Proportional":
        return self


def test_equal_widths_of_another_axis_are_measured_anew() -> None:
    first, again, other = Counting("block1"), Counting("block1"), Counting("block2")
    for loop in (first, again, other):
        device: Any = loop
        predictor: Any = Proportional()
        found = calibrate(device, predictor, [np.array([8]), np.array([2])])
        assert (found.factor, found.overhead_us) == pytest.approx((1.0, 0.0))
    assert (first.measured, again.measured, other.measured) == (1, 0, 1)


@pytest.mark.parametrize(
    ("dense_us", "half_us", "expected"),
    [
        (135.0, 75.0, (1.2, -15.0)),  # what the profiler added to every kernel
        (135.0, 53.0, (0.0, 0.0)),  # rows too dear for narrow networks: the line would end below nothing
    ],
)
def test_no_calibration_predicts_that_narrow_networks_take_no_time(
    dense_us: float, half_us: float, expected: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 125 and 75 channels, at a microsecond each as rows have it."""
    timings = {"dense": timing(dense_us), "narrower1": timing(half_us)}
    measured = Measurement(timings, "key", reused=False)
    monkeypatch.setattr(network_calibration, "measured_once", lambda *_arguments: measured)
    loop: Any = Counting("block")
    predictor: Any = Proportional()
    found = calibrate(loop, predictor, [np.array([125]), np.array([75])])
    ratio = float(np.mean([dense_us / 125, half_us / 75]))
    assert (found.factor, found.overhead_us) == pytest.approx(expected if expected[0] else (ratio, 0.0))


class Squared(Proportional):
    """Predicts a microsecond per channel; weights are the square of them, 64 channels 4 MiB."""

    def weights_mib(self, widths: Widths) -> Any:
        return (np.asarray(widths).sum(-1) / 32.0) ** 2


class Taking(Counting):
    """Takes what a function of the channels says, and notes how many networks it measures at a time."""

    def __init__(self, took_us: Callable[[float], float]) -> None:
        super().__init__("axis")
        self._took_us, self.sampled = took_us, list[int]()

    def kept(self, widths: Widths) -> dict[str, Any]:
        return {"axis": np.arange(64) < widths[0]}

    def measure(self, networks: dict[str, Any]) -> dict[str, Timing]:
        self.sampled.append(len(networks))
        return {name: timing(self._took_us(float(kept["axis"].sum()))) for name, kept in networks.items()}


SAMPLE = [np.array([64]), np.array([32])]
FURTHER = [np.array([58]), np.array([52]), np.array([45]), np.array([39])]


def test_weights_that_a_cache_does_not_hold_get_a_price() -> None:
    """Of 4 MiB of weights, 1.5 stay where they are; each further one costs 40 us."""

    def took_us(channels: float) -> float:
        return 0.8 * channels + 1.0 + 40.0 * max((channels / 32) ** 2 - 1.5, 0.0)

    device: Any = Taking(took_us)
    predictor: Any = Squared()
    found = calibrate(device, predictor, SAMPLE, FURTHER)
    assert device.sampled == [2, 6]
    assert found.held_mib == pytest.approx(1.5, abs=0.13)  # the sizes that are tried are an eighth apart
    assert found.spilled_us == pytest.approx(40.0, rel=0.05)
    for channels in (24.0, 40.0, 48.0, 56.0):
        predicted = found.latency_us(np.array(channels), predictor.weights_mib(np.array([channels])))
        assert predicted == pytest.approx(took_us(channels), rel=0.03)


def test_what_factor_and_overhead_describe_is_not_measured_further() -> None:
    device: Any = Taking(lambda channels: 1.2 * channels + 8.0)
    predictor: Any = Squared()
    found = calibrate(device, predictor, SAMPLE, FURTHER)
    assert device.sampled == [2]
    assert (found.factor, found.overhead_us, found.spilled_us) == pytest.approx((1.2, 8.0, 0.0))


@pytest.mark.parametrize("predictor", [Proportional(), Squared()])
def test_where_no_cache_explains_it_either_a_plain_ratio_is_taken(predictor: Any) -> None:
    """Of no weights, or where the time falls with the channels."""
    device: Any = Taking(lambda channels: 1000.0 / channels**2)
    found = calibrate(device, predictor, SAMPLE, FURTHER)
    assert found == Correction(pytest.approx((1000 / 64**3 + 1000 / 32**3) / 2))
