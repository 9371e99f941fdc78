"""Finding steps and widths while measuring, on staircases that are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import hwprune
from hwprune.device.correction import Correction
from hwprune.device.kernel_factors import NO_FACTORS, KernelFactors
from hwprune.device.predict import predict_operators
from hwprune.device.profile import RuntimeSpec
from hwprune.device.rows import Row
from hwprune.device.steps import Steps
from hwprune.device.table import LatencyTable
from hwprune.operators import Operator
from hwprune.runtime import rows as row_search
from hwprune.runtime import sampling
from hwprune.runtime.base import Effort
from hwprune.runtime.calibration_fit import Weights, fit_calibration
from hwprune.runtime.knots import Curve, bisect, curves, lattice
from hwprune.runtime.operator_models import OperatorModel
from hwprune.runtime.sampling import measure_operators
from hwprune.runtime.staircase import align_of, divisor_of, period_of
from hwprune.runtime.undisturbed import binned_median


@pytest.mark.parametrize("align", [4, 8, 16, 32])
def test_the_step_of_a_staircase_is_found(align: int) -> None:
    assert align_of({width: 10.0 + 2 * -(-width // align) for width in range(33, 65)}) == align


def test_noise_below_the_flatness_of_a_step_does_not_hide_it() -> None:
    noisy = {width: (40.0 + 8 * -(-width // 8)) * (1.01 if width % 3 else 0.99) for width in range(33, 65)}
    assert align_of(noisy) == 8


def test_single_measurements_that_were_disturbed_do_not_hide_a_step() -> None:
    noise = np.random.default_rng(0).uniform(1.0, 1.12, 32)
    disturbed = {width: 40.0 * -(-width // 8) * noise[width - 33] for width in range(33, 65)}
    assert align_of(disturbed) == 8


def test_channels_that_each_cost_are_no_step_of_many() -> None:
    assert align_of({width: 5.0 + width for width in range(33, 65)}) <= 2


def test_slow_leftovers_are_part_of_the_step() -> None:
    latency = {width: 10.0 * -(-width // 8) + (6.0 if width % 8 else 0.0) for width in range(33, 65)}
    assert align_of(latency) == 8


def test_a_straight_staircase_has_the_shortest_period() -> None:
    assert period_of({width: float(width) for width in range(16, 18 * 16, 16)}, 16) == 16


def test_every_width_that_runs_the_fast_kernel_gives_the_divisor() -> None:
    assert divisor_of(dict.fromkeys(range(49, 65), 10.0)) == 1
    assert divisor_of({width: 30.0 if width % 8 else 10.0 for width in range(49, 65)}) == 8


def measured(curve: Curve, latency: dict[int, float]) -> int:
    asked: list[int] = []

    def measure(pairs: Sequence[tuple[str, int]]) -> list[float]:
        asked.extend(width for _, width in pairs)
        return [latency[width] for _, width in pairs]

    bisect({"curve": curve}, measure)
    return len(asked)


def test_a_measured_row_is_the_row_that_is_read_back(tmp_path: Path) -> None:
    operators = [Operator("conv", 8, width, 6, 6, 3, 3, padding=1) for width in (8, 16, 24)]
    rows = measure_operators(operators, RuntimeSpec(kind="onnxruntime"))
    LatencyTable(rows).write(tmp_path / "latency.csv", {})
    assert set(LatencyTable.read(tmp_path / "latency.csv").rows) == set(rows)


def test_every_file_holds_as_many_bytes_as_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    original = sampling.make_operator_model

    def counted(operators: Sequence[Operator], batch: int, **named: Any) -> OperatorModel:
        made.append(sum(map(sampling.bytes_of, operators)))
        return original(operators, batch, **named)

    monkeypatch.setattr(sampling, "make_operator_model", counted)
    operators = [Operator("linear", 1024, 1024), Operator("linear", 512, 1024), Operator("linear", 8, 8)]
    effort = Effort(seconds=0.01, least_runs=2, most_runs=2)
    spec = RuntimeSpec(kind="onnxruntime")
    rows = measure_operators(operators[:2], spec, effort=effort, working_set=24 * 2**20)
    rows += measure_operators(operators[2:], spec, effort=effort, working_set=5 * 2**20)
    rows += measure_operators(operators[2:], spec, effort=effort, working_set=2**10)
    assert [row.operator for row in rows] == [*operators, operators[2]]
    assert made[:2] == pytest.approx([24 * 2**20, 5 * 2**20], abs=2 * 2**20)
    assert made[2] < 2**12  # a small network has its caches to itself, but for the idle kernels


def test_a_straight_line_needs_few_measurements_and_a_bent_one_more() -> None:
    widths = lattice(512, Steps(8))
    straight = measured(Curve(widths), {width: 5.0 + width for width in widths})
    bent = measured(Curve(widths), {width: 5.0 + width + (200.0 if width > 300 else 0.0) for width in widths})
    assert straight <= 5
    assert straight < bent < len(widths) / 2


def test_there_is_a_curve_for_every_place_of_the_period() -> None:
    found = curves([128], Steps(8, 32))
    assert sorted(curve.lattice[0] for curve in found) == [8, 16, 24, 32]
    assert sum(len(curve.lattice) for curve in found) == 16


def test_a_calibration_without_overhead_is_a_ratio() -> None:
    assert fit_calibration([10.0, 20.0, 40.0], [12.0, 24.0, 48.0]) == (Correction(1.2, 0.0), NO_FACTORS)
    assert fit_calibration([10.0, 20.0, 40.0], [17.0, 27.0, 47.0]) == (Correction(1.0, 7.0), NO_FACTORS)


def test_a_calibration_prices_weights_that_leave_a_cache() -> None:
    """Of twelve networks of 0.4 to 2.6 MiB that were measured among 1 MiB, and as many of 8 without need."""
    small = [Weights(0.2 * number, 1.0) for number in range(2, 14)]
    large = [Weights(8.0, 4.0)] * 12
    sums = [40.0 + 3 * (5 * number % 12) for number in range(24)]
    spilled = [*(40.0 * max(each.mib - 1.2, 0.0) for each in small), *[0.0] * 12]
    took = [1.1 * each + 5.0 + more for each, more in zip(sums, spilled, strict=True)]
    found = fit_calibration(sums, took, [*small, *large]).correction
    assert (found.factor, found.overhead_us) == pytest.approx((1.1, 5.0), rel=0.05)
    assert (found.held_mib, found.spilled_us) == pytest.approx((1.2, 40.0), rel=0.05)
    none = fit_calibration(sums, [1.1 * each + 5.0 for each in sums], [*small, *large])
    assert none == (Correction(1.1, 5.0), NO_FACTORS)


def test_a_calibration_tells_kernels_apart_where_networks_do() -> None:
    """Of sixteen networks that are linear by 0 to 60 %; in the second case hardly any of them is."""
    sums = [40.0 + 3 * (5 * number % 16) for number in range(16)]
    linear = [each * (number % 4) / 5 for number, each in enumerate(sums)]
    took = [1.1 * (each + 0.8 * part) + 5.0 for each, part in zip(sums, linear, strict=True)]
    convolved = [0.3 * each for each in sums]
    found = fit_calibration(sums, took, kernels={"pointwise": convolved, "linear": linear})
    assert (found.correction.factor, found.correction.overhead_us) == pytest.approx((1.1, 5.0), rel=1e-3)
    assert found.kernels.linear == pytest.approx(1.8, rel=1e-3)
    assert found.kernels == KernelFactors(linear=found.kernels.linear)
    assert fit_calibration(sums, took).kernels == NO_FACTORS
    little = {"linear": [0.1 * part for part in linear[:3]] + [0.04 * each for each in sums[3:]]}
    assert fit_calibration(sums, took, kernels=little).kernels == NO_FACTORS


def test_factors_of_kernels_outside_of_reason_are_none() -> None:
    sums = [40.0 + 3 * (5 * number % 16) for number in range(16)]
    linear = [each * (number % 4) / 5 for number, each in enumerate(sums)]
    took = [each + 9.0 * part for each, part in zip(sums, linear, strict=True)]
    assert fit_calibration(sums, took, kernels={"linear": linear}).kernels == NO_FACTORS


def test_a_price_of_what_leaves_a_cache_is_paid_by_networks_with_rows_among_less() -> None:
    profile = hwprune.load_profile("any-cpu-ort")
    wide = Operator("linear", 1024, 512)  # 2 MiB of weights
    latency = profile.latency.model_copy(update={"held_mib": 1.5, "spilled_us": 40.0})

    def priced_us(among: int) -> float:
        rows = LatencyTable((Row(wide, 10.0, among=among),))
        return predict_operators(
            [wide], profile.model_copy(update={"rows": rows, "latency": latency})
        ).total_us

    assert priced_us(1 << 20) == priced_us(0) == 10.0 + 0.5 * 40.0
    assert priced_us(1 << 22) == 10.0


def test_a_network_with_zeros_is_priced_among_the_weights_that_it_has_without() -> None:
    wide = Operator("linear", 2048, 1024)  # 8 MiB of weights, of which a tenth is left
    rows = [
        Row(replace(wide, density=density), us * density, among=among)
        for among, us in ((1 << 20, 100.0), (1 << 23, 300.0))
        for density in (1.0, 0.1)
    ]
    profile = hwprune.load_profile("any-cpu-ort").model_copy(update={"rows": LatencyTable(tuple(rows))})
    assert predict_operators([replace(wide, density=0.1)], profile).total_us == pytest.approx(30.0)


def test_the_steps_of_grouped_convolutions_keep_them_divisible() -> None:
    import hwprune

    profile = hwprune.load_profile("x86-avx2-ort")
    assert profile.steps_for(Operator("conv", 24, 24, 4, 4, 3, 3, padding=1, groups=3)).align % 3 == 0


def test_only_samples_on_a_grid_are_taken_for_cut_ones() -> None:
    cut = np.floor(np.random.default_rng(0).uniform(6.3, 8.3, 2001)) + 0.5
    assert binned_median(cut) == pytest.approx(7.3, abs=0.05)
    assert binned_median([4.11, 4.13, 4.18, 4.19]) == pytest.approx(4.155)


@pytest.mark.parametrize(("seconds", "least", "most"), [(5.0, 40, 100), (20.0, 100, 200), (1e4, 300, 400)])
def test_no_more_widths_are_crossed_than_can_be_measured_in_time(
    seconds: float, least: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten rows a second, and a side that bends at every width, as one without a step may."""
    clock = [0.0]
    monkeypatch.setattr(row_search, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def time_operators(wanted: Sequence[Operator], *_spec: object, **_options: object) -> tuple[Row, ...]:
        clock[0] += 0.1 * len(wanted)
        return tuple(
            Row(each, 50.0 + (37 * each.in_channels + 53 * each.out_channels) % 101) for each in wanted
        )

    operator, profile = Operator("linear", 250, 200), hwprune.load_profile("any-cpu-ort")
    rows = row_search.measure_rows(
        [operator], profile, working_set=0, seconds=seconds, time_operators=time_operators
    )
    assert least <= len(rows) <= most
    assert LatencyTable(rows).covers_narrower(operator, profile.steps_for(operator))


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_where_time_is_up_only_some_widths_are_crossed_and_all_have_a_price(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cost is that of its products and of its outputs, which whole steps of it interpolate exactly."""
    profile = hwprune.load_profile("x86-avx2-ort")
    operator = Operator(kind, 250, 200, 7, 7) if kind == "conv" else Operator(kind, 250, 200)

    def cost_us(each: Operator) -> float:
        steps = profile.steps_for(each)
        out = steps.round_up(each.out_channels)
        return 1.0 + 1e-3 * steps.round_up(each.in_channels) * out + 0.01 * out

    def time_operators(wanted: Sequence[Operator], *_spec: object, **_options: object) -> tuple[Row, ...]:
        return tuple(Row(each, cost_us(each)) for each in wanted)

    def measured_rows(most: int) -> tuple[Row, ...]:
        monkeypatch.setattr(row_search, "CROSSED_IN_HASTE", most)
        return row_search.measure_rows(
            [operator], profile, working_set=0, seconds=0.0, time_operators=time_operators
        )

    hasty, patient = measured_rows(3), measured_rows(1000)
    assert len(hasty) < 0.7 * len(patient)
    table, steps = LatencyTable(hasty), profile.steps_for(operator)
    assert table.covers_narrower(operator, steps)
    for inputs, outputs in [(250, 200), (64, 48), (16, 8), (120, 200), (250, 56), (8, 104)]:
        narrower = replace(operator, in_channels=inputs, out_channels=outputs)
        assert table.latency_us(narrower, steps) == pytest.approx(cost_us(narrower), rel=0.02)
