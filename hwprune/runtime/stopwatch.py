"""Runs networks in alternation and keeps every duration: nothing but the standard library.

What is measured here and what is measured on another machine is measured by this same code: it is sent along.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

#: Runs that are not counted, and the least time they take.
WARMUP_RUNS, WARMUP_SECONDS = 20, 0.2
#: Timed runs in a block before the next network has its turn.
BLOCK = 20
#: Runs go on until the median's confidence interval is this narrow, or one of the bounds is reached.
PRECISION = 0.004
LEAST_RUNS, MOST_RUNS, MOST_SECONDS = 200, 4000, 20.0


def sample(networks: Mapping[str, Callable[[], object]], runs: int | None) -> dict[str, list[float]]:
    """Times networks in alternation, so that a drift of the machine meets all of them alike.

    Args:
        networks: Name to a function that runs the network once.
        runs: Timed runs of each; by default as many as the median needs to be certain to 0.4 %.

    Returns:
        Name to durations in microseconds, in the order of the runs.
    """
    samples: dict[str, list[float]] = {name: [] for name in networks}
    with _no_garbage_collection():
        for run in networks.values():
            _warm_up(run)
        started = time.perf_counter()
        while not _enough(samples, runs, time.perf_counter() - started):
            for name, run in networks.items():
                count = BLOCK if runs is None else min(BLOCK, runs - len(samples[name]))
                run()  # the other network has just left the caches its own
                samples[name] += _block(run, count)
    return samples


def _block(run: Callable[[], object], count: int) -> list[float]:
    durations = []
    for _ in range(count):
        start = time.perf_counter_ns()
        run()
        durations.append((time.perf_counter_ns() - start) / 1e3)
    return durations


def _warm_up(run: Callable[[], object]) -> None:
    start, done = time.perf_counter(), 0
    while done < WARMUP_RUNS or time.perf_counter() - start < WARMUP_SECONDS:
        run()
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
    ordered = sorted(values)
    size, middle = len(ordered), len(ordered) // 2
    half = 0.98 * math.sqrt(size)  # 1.96 standard deviations of a binomial with p = 1/2
    low = max(math.floor(size / 2 - half), 0)
    high = min(math.ceil(size / 2 + half), size - 1)
    median = ordered[middle] if size % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    return (ordered[high] - ordered[low]) / median


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
