"""Timing exported networks: warmed up, alternating, until the median is certain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hwprune.device.profile import DeviceProfile
from hwprune.errors import InputError
from hwprune.runtime.base import Array, InputInfo, get_runtime
from hwprune.runtime.environment import environment
from hwprune.runtime.stopwatch import sample


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
    check_request(paths, runs)
    runtime = get_runtime(profile.runtime.kind)
    sessions = {name: runtime.open(path, profile.runtime) for name, path in paths.items()}
    feeds = {name: random_feed(session.inputs, profile.runtime.batch) for name, session in sessions.items()}
    networks = {name: partial(session.run, feeds[name]) for name, session in sessions.items()}
    facts = {
        **environment(),
        "runtime": profile.runtime.kind,
        "runtime_version": runtime.version(),
        "precision": profile.runtime.precision,
        "threads": profile.runtime.threads,
        "batch": profile.runtime.batch,
    }
    return {name: timing_of(values, facts) for name, values in sample(networks, runs).items()}


def check_request(paths: Mapping[str, Path], runs: int | None) -> None:
    """Raises where a file to time is missing, or fewer runs are asked for than one.

    Raises:
        InputError: In these cases.
    """
    for path in paths.values():
        if not path.is_file():
            raise InputError("no such model file", where=path, expected="an ONNX file")
    if runs is not None and runs < 1:
        raise InputError("too few runs", expected="at least 1", got=runs)


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


def timing_of(values: Sequence[float], facts: Mapping[str, Any]) -> Timing:
    """Durations in microseconds as the timing of a network."""
    p10, median, p90 = (float(value) for value in np.percentile(values, [10, 50, 90]))
    return Timing(median, p10, p90, len(values), facts)
