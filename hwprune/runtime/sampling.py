"""Times single operators: many to a file, every run of the file executing each of them once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hwprune.device.kinds import describe
from hwprune.device.profile import RuntimeSpec
from hwprune.device.rows import DECIMALS, Row
from hwprune.device.working_set import map_bytes, size_class, weight_bytes
from hwprune.errors import RuntimeUnavailableError
from hwprune.operators import Operator
from hwprune.runtime.base import Effort, Runtime, runtime_for
from hwprune.runtime.half import half
from hwprune.runtime.idle import idle_us
from hwprune.runtime.interrupts import finishing
from hwprune.runtime.operator_models import check_known, make_operator_model
from hwprune.runtime.quantized_operators import quantized, without_edges
from hwprune.runtime.recording import among_idle, without_recording
from hwprune.runtime.undisturbed import binned_median, undisturbed_runs

Progress = Callable[[int, int], None]


def telling_rows(notify: Callable[[str], None], every: float) -> Progress:
    """A progress that tells how far a table has come; splitting intervals makes more rows needed.

    Args:
        notify: Called with a line.
        every: Seconds between two lines, and before the first.
    """
    next_line = time.monotonic() + every

    def tell(done: int, total: int) -> None:
        nonlocal next_line
        if time.monotonic() >= next_line:
            notify(f"{done} rows measured, {total - done} more known to be needed so far")
            next_line = time.monotonic() + every

    return tell


class TimeOperators(Protocol):
    """What :func:`measure_operators` does, or somebody who keeps what it returns."""

    def __call__(
        self,
        operators: Sequence[Operator],
        spec: RuntimeSpec,
        progress: Progress | None = None,
        *,
        working_set: int,
    ) -> tuple[Row, ...]:
        """Times operators; see :func:`measure_operators`."""
        ...


#: Operators that share a file.
MOST_OPERATORS = 48
#: Bounds of the memory that the operators of a file may take, and what it is where nobody says.
LEAST_BYTES, MOST_BYTES, USUAL_BYTES = 2**18, 128 * 2**20, 12 * 2**20
#: What fills a file up whose operators alone would stay in the caches: 1 MiB of weights, read once a run.
FILLER = Operator("linear", 512, 512)
#: What comes first in every file and does not count: the first convolution takes OpenVINO 15 to 20 us more.
FIRST = Operator("conv", 8, 8, 1, 1)
#: Every file runs for about this long, within these bounds.
EFFORT = Effort(seconds=0.35, least_runs=12, most_runs=100)


def measure_operators(
    operators: Sequence[Operator],
    spec: RuntimeSpec,
    progress: Progress | None = None,
    effort: Effort = EFFORT,
    working_set: int = USUAL_BYTES,
) -> tuple[Row, ...]:
    """Times operators.

    Args:
        operators: What to time; names do not matter.
        spec: Runtime, threads and batch.
        progress: Called with the number of rows done and in all after every file.
        effort: How long every file runs.
        working_set: Bytes of weights and maps that share a file. What a kernel costs depends on which
            caches its weights are in, and that on how much else runs between two of its runs: a file
            holds as many bytes as that, be it others' or :data:`FILLER`'s.

    Raises:
        RuntimeUnavailableError: If the runtime is missing, refuses a file or hides an operator.
        MissingRowError: If an operator is of a kind that cannot be measured.
    """
    rows: list[Row] = []
    for chunk in files(operators, working_set):
        # A small network stays in the caches, and its rows are not to be driven out of them.
        filling = _filling(min(working_set, MOST_BYTES) - sum(map(bytes_of, chunk)))
        measured = _measure_chunk(chunk, filling, spec, effort)
        rows += [replace(row, among=size_class(working_set)) for row in measured]
        if progress is not None:
            progress(len(rows), len(operators))
    return tuple(rows)


def files(operators: Iterable[Operator], working_set: int) -> Iterator[list[Operator]]:
    """The operators that share a file, file by file; see :func:`measure_operators`."""
    most_bytes = min(max(working_set, LEAST_BYTES), MOST_BYTES)
    chunk: list[Operator] = []
    used = 0
    for operator in operators:
        size = bytes_of(operator)
        if chunk and (len(chunk) >= MOST_OPERATORS or used + size > most_bytes):
            yield chunk
            chunk, used = [], 0
        chunk.append(operator)
        used += size
    if chunk:
        yield chunk


def bytes_of(operator: Operator) -> int:
    """Bytes that it goes through in a file of operators, each with maps of its own, for one image."""
    return weight_bytes(operator) + 2 * map_bytes(operator)


def _filling(missing_bytes: int) -> list[Operator]:
    """As many fillers as come closest to so many bytes."""
    return [FILLER] * max(round(missing_bytes / bytes_of(FILLER)), 0)


def _measure_chunk(
    operators: Sequence[Operator], filling: Sequence[Operator], spec: RuntimeSpec, effort: Effort
) -> list[Row]:
    for operator in operators:  # before the runtime sees it: some end the process
        check_known(operator, spec.kind)
    runtime = runtime_for(spec)
    laid, positions = list(operators), list(range(len(operators)))
    if runtime.counts_recording:
        laid, positions = among_idle(operators)
    kernels = _kernels_of(laid, filling, spec, runtime, effort)
    for position, operator in zip(positions, operators, strict=True):
        if position not in kernels:
            raise RuntimeUnavailableError(
                f"the runtime reports no time for {describe(operator)}",
                expected="a kernel named after its node or output",
                got=f"kernels of {len(kernels)} of {len(laid)} operators",
            )
    undisturbed = _undisturbed(kernels)
    idle = set(range(len(laid))) - set(positions)
    cost = _recording_us([us for position in idle for us in undisturbed[position]], spec) if idle else 0.0
    # What runs as several kernels costs their sum.
    return [
        _row(
            operator,
            without_recording(np.stack(kernels[position]), cost).sum(axis=0),
            float(without_recording(undisturbed[position], cost).sum()),
        )
        for position, operator in zip(positions, operators, strict=True)
    ]


def _recording_us(recorded: Sequence[float], spec: RuntimeSpec) -> float:
    """What recording one kernel takes: idle kernels as recorded, without what they take in a network."""
    return max(float(np.median(recorded)) - idle_us(spec), 0.0)


def _undisturbed(
    kernels: Mapping[int, Sequence[npt.NDArray[np.float64]]],
) -> dict[int, npt.NDArray[np.float64]]:
    """Position of an operator to what each of its kernels took while nothing disturbed the file."""
    together = np.stack([durations for each in kernels.values() for durations in each])
    took = undisturbed_runs(together).mean(axis=1)
    ends = np.cumsum([len(each) for each in kernels.values()])
    return dict(zip(kernels, np.split(took, ends[:-1]), strict=True))


def _kernels_of(
    operators: Sequence[Operator],
    filling: Sequence[Operator],
    spec: RuntimeSpec,
    runtime: Runtime,
    effort: Effort,
) -> dict[int, list[npt.NDArray[np.float64]]]:
    """Position of an operator to the durations of each of its kernels, ``(runs,)``, in microseconds."""
    model = make_operator_model([FIRST, *operators, *filling], spec.batch, runtime=spec.kind)
    with finishing():
        if spec.precision == "int8":
            model = quantized(model)
            samples = without_edges(runtime.operator_samples(model.content, spec, model.feed, effort))
        else:
            content = half(model.content) if spec.precision == "fp16" else model.content
            samples = runtime.operator_samples(content, spec, model.feed, effort)
    kernels: dict[int, list[npt.NDArray[np.float64]]] = {}
    for kernel, durations in samples.items():
        index = model.operator_of(kernel)
        if index:  # neither the first nor what feeds a branch
            kernels.setdefault(index - 1, []).append(np.asarray(durations))
    return kernels


def _row(operator: Operator, values: npt.NDArray[np.float64], undisturbed_us: float) -> Row:
    # As exact as tables are written: a row read back is the row that was measured, so that equal runs stay
    # equal whether they measure or read.
    p10, median, p90 = (
        max(round(float(value), DECIMALS), 10**-DECIMALS)
        for value in (np.percentile(values, 10), binned_median(values), np.percentile(values, 90))
    )
    alone = max(round(float(undisturbed_us), DECIMALS), 10**-DECIMALS)
    return Row(replace(operator, name=""), median, min(p10, median), max(p90, median), len(values), alone)
