"""Timing exported networks: warmed up, alternating, until the median is certain."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hwprune.device.profile import DeviceProfile
from hwprune.errors import InputError
from hwprune.runtime.base import Array, InputInfo, Session, get_runtime
from hwprune.runtime.environment import environment

#: Runs that are not counted, and the least time they take.
WARMUP_RUNS, WARMUP_SECONDS = 20, 0.2
#: Timed runs in a block before the next network has its turn.
BLOCK = 20
#: Runs go on until the median's confidence interval is this narrow, or one of the bounds is reached.
PRECISION = 0.004
LEAST_RUNS, MOST_RUNS, MOST_SECONDS = 200, 4000, 20.0


@dataclass(frozen=True, slots=True)
class Timing:
    """Latency of a network, measured.

    Attributes:
        median_us: Median, in microseconds.
        p10_us: 10th percentile.
        p90_us: 90th percentile.
        runs: Timed runs.
        environment: Machine, versions, runtime, precision and threads.
    """

    median_us: float
    p10_us: float
    p90_us: float
    runs: int
    environment: Mapping[str, Any] = field(default_factory=dict)

    def summary(self) -> dict[str, float]:
        """Median, p10, p90 and runs, as reports carry them."""
        return {
            "median": round(self.median_us, 3),
            "p10": round(self.p10_us, 3),
            "p90": round(self.p90_us, 3),
            "runs": self.runs,
        }


def measure(path: str | Path, profile: DeviceProfile, runs: int | None = None) -> Timing:
    """Times one ONNX file on this machine in the runtime that the profile names.

    Args:
        path: The file.
        profile: Says runtime, threads, batch and precision.
        runs: Timed runs; by default as many as the median needs to be certain to 0.4 %.

    Raises:
        InputError: If there is no such file.
        RuntimeUnavailableError: If the runtime is missing or refuses the file.
    """
    return measure_alternately({"network": Path(path)}, profile, runs)["network"]


def measure_alternately(
    paths: Mapping[str, Path], profile: DeviceProfile, runs: int | None = None
) -> dict[str, Timing]:
    """Times several ONNX files in alternation, so that a drift of the machine meets all of them alike.

    Args:
        paths: Name to file.
        profile: Says runtime, threads, batch and precision.
        runs: Timed runs of each; see :func:`measure`.

    Returns:
        Name to timing.
    """
    for path in paths.values():
        if not path.is_file():
            raise InputError("no such model file", where=path, expected="an ONNX file")
    if runs is not None and runs < 1:
        raise InputError("too few runs", expected="at least 1", got=runs)
    runtime = get_runtime(profile.runtime.kind)
    sessions = {name: runtime.open(path, profile.runtime) for name, path in paths.items()}
    feeds = {name: random_feed(session.inputs, profile.runtime.batch) for name, session in sessions.items()}
    samples = _sample(sessions, feeds, runs)
    facts = {
        **environment(),
        "runtime": profile.runtime.kind,
        "runtime_version": runtime.version(),
        "precision": profile.runtime.precision,
        "threads": profile.runtime.threads,
        "batch": profile.runtime.batch,
    }
    return {name: _timing(values, facts) for name, values in samples.items()}


def random_feed(inputs: Sequence[InputInfo], batch: int, seed: int = 0) -> dict[str, Array]:
    """Random data for every input; open sizes become the batch size."""
    generator = np.random.default_rng(seed)
    feed: dict[str, Array] = {}
    for item in inputs:
        shape = tuple(batch if size is None else size for size in item.shape)
        if np.issubdtype(item.dtype, np.floating):
            feed[item.name] = generator.standard_normal(shape).astype(item.dtype)
        else:
            feed[item.name] = np.zeros(shape, dtype=item.dtype)
    return feed


def _sample(
    sessions: Mapping[str, Session], feeds: Mapping[str, Mapping[str, Array]], runs: int | None
) -> dict[str, list[float]]:
    samples: dict[str, list[float]] = {name: [] for name in sessions}
    with _no_garbage_collection():
        for name, session in sessions.items():
            _warm_up(session, feeds[name])
        started = time.perf_counter()
        while not _enough(samples, runs, time.perf_counter() - started):
            for name, session in sessions.items():
                count = BLOCK if runs is None else min(BLOCK, runs - len(samples[name]))
                session.run(feeds[name])  # the other network has just left the caches its own
                samples[name] += _block(session, feeds[name], count)
    return samples


def _block(session: Session, feed: Mapping[str, Array], count: int) -> list[float]:
    durations = []
    for _ in range(count):
        start = time.perf_counter_ns()
        session.run(feed)
        durations.append((time.perf_counter_ns() - start) / 1e3)
    return durations


def _warm_up(session: Session, feed: Mapping[str, Array]) -> None:
    start, done = time.perf_counter(), 0
    while done < WARMUP_RUNS or time.perf_counter() - start < WARMUP_SECONDS:
        session.run(feed)
        done += 1


def _enough(samples: Mapping[str, list[float]], runs: int | None, seconds: float) -> bool:
    least = min(len(values) for values in samples.values())
    if runs is not None:
        return least >= runs
    if least >= MOST_RUNS or (seconds > MOST_SECONDS and least >= BLOCK):
        return True
    return least >= LEAST_RUNS and all(median_interval(values) <= PRECISION for values in samples.values())


def median_interval(values: Sequence[float]) -> float:
    """Width of the 95 % confidence interval of the median as a fraction of it, from order statistics.

    >>> round(median_interval([1.0] * 50 + [1.1] * 50), 3)
    0.095
    """
    ordered = np.sort(np.asarray(values))
    half = 0.98 * np.sqrt(ordered.size)  # 1.96 standard deviations of a binomial with p = 1/2
    low = max(int(np.floor(ordered.size / 2 - half)), 0)
    high = min(int(np.ceil(ordered.size / 2 + half)), ordered.size - 1)
    return float((ordered[high] - ordered[low]) / np.median(ordered))


def _timing(values: Sequence[float], facts: Mapping[str, Any]) -> Timing:
    p10, median, p90 = (float(value) for value in np.percentile(values, [10, 50, 90]))
    return Timing(median, p10, p90, len(values), facts)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
