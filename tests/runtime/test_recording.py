"""What timing kernels costs is measured among them and taken off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from hwprune.device.profile import RuntimeSpec
from hwprune.operators import Operator
from hwprune.runtime import sampling
from hwprune.runtime.base import Array, Effort, Samples
from hwprune.runtime.recording import IDLE_OPERATORS, LEAST, among_idle
from hwprune.runtime.sampling import measure_operators

SPEC = RuntimeSpec(kind="onnxruntime")
QUICK = Effort(seconds=0.05, least_runs=10, most_runs=10, warmup_runs=1)
#: A hundredth of a microsecond for each channel it writes, by which the runtime below knows them.
OPERATORS = [Operator("relu", channels, channels, 2, 2) for channels in (100, 200, 300)]


class Profiler:
    """Takes a time for every operator, and another for recording each of its kernels, which rises and falls.

    The slow half of the runs is disturbed. Operators that write 300 channels run as two kernels, of which one
    takes less than an idle one.
    """

    def __init__(self, *, counts_recording: bool, cost_us: float) -> None:
        self.cost_us, self.files = cost_us, 0
        self.counts_recording = counts_recording

    def operator_samples(
        self, _model: bytes, _spec: RuntimeSpec, feed: Mapping[str, Array], effort: Effort
    ) -> Samples:
        self.files += 1
        cost = self.cost_us * self.files
        samples: Samples = {}
        for name, values in feed.items():
            channels, index = values.shape[1], name.removeprefix("x").removesuffix("_0")
            took = channels / 100 if channels >= 100 else 0.0
            kernels = {f"op{index}_0": cost + took}
            if channels == 300:
                kernels[f"op{index}_1"] = cost / 2
            for kernel, us in kernels.items():
                runs = np.full(effort.least_runs, us)
                runs[::2] *= 3
                samples[kernel] = runs.tolist()
        return samples


def rows_of(profiler: Profiler, monkeypatch: pytest.MonkeyPatch, idle: float = 0.0) -> list[float]:
    monkeypatch.setattr(sampling, "runtime_for", lambda _spec: profiler)
    monkeypatch.setattr(sampling, "idle_us", lambda _spec: idle)
    rows = measure_operators(OPERATORS, SPEC, effort=QUICK, working_set=0)
    assert [row.operator for row in rows] == OPERATORS
    return [row.undisturbed_us for row in rows]


@pytest.mark.parametrize("cost_us", [0.5, 4.0])
def test_rows_are_free_of_what_recording_costs_in_their_own_file(
    cost_us: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    profiler = Profiler(counts_recording=True, cost_us=cost_us)
    assert rows_of(profiler, monkeypatch) == pytest.approx([1.0, 2.0, 3.0 + LEAST])
    assert rows_of(profiler, monkeypatch) == pytest.approx([1.0, 2.0, 3.0 + LEAST])
    assert profiler.files == 2


def test_what_an_idle_kernel_takes_in_a_network_is_no_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(Profiler(counts_recording=True, cost_us=4.0), monkeypatch, idle=1.5)
    # Two kernels in the last operator, of which the one takes half of what an idle one does.
    assert rows == pytest.approx([1.0 + 1.5, 2.0 + 1.5, 3.0 + 1.5 + LEAST])


def test_recording_takes_nothing_where_idle_kernels_took_less_among_others_than_by_themselves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = rows_of(Profiler(counts_recording=True, cost_us=1.0), monkeypatch, idle=50.0)
    assert rows == pytest.approx([2.0, 3.0, 4.0 + 0.5])


def test_what_a_runtime_tells_that_records_for_nothing_is_taken_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    profiler = Profiler(counts_recording=False, cost_us=4.0)
    assert rows_of(profiler, monkeypatch) == pytest.approx([5.0, 6.0, 9.0])


def test_a_kernel_that_takes_no_longer_than_recording_it_takes_next_to_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampling, "runtime_for", lambda _spec: Profiler(counts_recording=True, cost_us=1.0))
    monkeypatch.setattr(sampling, "idle_us", lambda _spec: 0.0)
    operator = replace(OPERATORS[0], in_channels=4, out_channels=4)
    (row,) = measure_operators([operator], SPEC, effort=QUICK, working_set=0)
    assert row.undisturbed_us == LEAST


@pytest.mark.parametrize("count", [1, 3, 48])
def test_idle_kernels_lie_evenly_among_the_operators(count: int) -> None:
    operators = [Operator("relu", 8 + index, 8 + index) for index in range(count)]
    laid, positions = among_idle(operators)
    assert [laid[position] for position in positions] == operators
    assert len(laid) == count + IDLE_OPERATORS
    idle = [place for place in range(len(laid)) if place not in positions]
    gaps = np.diff([-1, *idle, len(laid)])
    assert gaps.max() - gaps.min() <= max(count / IDLE_OPERATORS + 2, 5)
