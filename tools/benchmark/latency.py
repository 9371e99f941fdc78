"""Lands networks on a measured latency: a stopwatch beside the dense network, and the search for a ratio."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from hwprune.device.profile import DeviceProfile
from hwprune.errors import HwpruneError
from hwprune.runtime.bench import ThisMachine
from hwprune.runtime.export import export
from hwprune.runtime.timing import Timing, measure_alternately

#: A network may be this much faster than was asked for, and not slower.
TOLERANCE = 0.03
#: Speed-ups so near to a limit are timed twice.
BORDERLINE = 0.01
#: Fractions that are tried first, from the slow side, until one is fast enough.
COARSE = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02)
#: Fractions that differ by less give the same network, or as good as.
FINEST = 0.002
#: Timed runs of a network in the search.
RUNS = 1500


class UndisturbedBench(ThisMachine):
    """Measures here, and takes what runs take undisturbed for the median: as everybody is judged."""

    def time(
        self, paths: Mapping[str, Path], profile: DeviceProfile, runs: int | None = None
    ) -> dict[str, Timing]:
        """See :meth:`hwprune.runtime.bench.Bench.time`."""
        timings = super().time(paths, profile, runs)
        return {name: replace(timing, median_us=timing.undisturbed_us) for name, timing in timings.items()}


class Clock(Protocol):
    """Says how fast networks are."""

    def speedup(self, network: nn.Module) -> float:
        """How many times faster than the dense network."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Stopwatch:
    """Times networks beside the dense one.

    Attributes:
        dense: File of the dense network.
        profile: The device.
        example: What networks are exported with.
    """

    dense: Path
    profile: DeviceProfile
    example: Tensor

    def speedup(self, network: nn.Module) -> float:
        """How many times faster than the dense network, both timed alternately.

        Undisturbed runs are compared: other work on the machine makes runs slower, never faster, and slows
        small networks down by more than large ones.
        """
        with tempfile.TemporaryDirectory(prefix="hwprune-") as folder:
            path = Path(folder) / "network.onnx"
            export(network, path, self.example)
            timings = measure_alternately({"dense": self.dense, "network": path}, self.profile, RUNS)
        return timings["dense"].undisturbed_us / timings["network"].undisturbed_us


@dataclass(frozen=True, slots=True, eq=False)
class Landed:
    """What a search came to.

    Attributes:
        network: Fast enough, by the least of all that were tried in its neighbourhood.
        fraction: What it was built with.
        tries: Networks that were built and timed.
    """

    network: nn.Module
    fraction: float
    tries: int


def land(build: Callable[[float], nn.Module], stopwatch: Clock, target: float) -> Landed:
    """Finds the largest fraction whose network is fast enough: coarsely from above, then by bisection.

    More is not always slower (a peer that leaves a layer whole where it cannot be cut as far as it wants is
    faster before than after), so that halving the whole range could end where nothing is fast enough although
    something is.

    Args:
        build: From a fraction in (0, 1] to a network; more is slower, as a rule.
        stopwatch: Measures.
        target: How many times faster than dense.

    Raises:
        HwpruneError: If no network that was tried is fast enough.
    """
    tries, slower, fastest = 0, 1.0, 0.0
    for fraction in COARSE:
        network, tries = build(fraction), tries + 1
        reached = confirmed_speedup(network, stopwatch, target)
        if reached >= target:
            break
        slower, fastest = fraction, max(fastest, reached)
    else:
        raise HwpruneError(
            f"none of {tries} ratios makes the network {target:g} times faster",
            got=f"at most {fastest:.2f} times",
        )
    best, best_fraction = (reached, network), fraction
    while best[0] > target * (1 + TOLERANCE) and slower - best_fraction > FINEST:
        middle = (best_fraction + slower) / 2
        network, tries = build(middle), tries + 1
        reached = confirmed_speedup(network, stopwatch, target)
        if reached < target:
            slower = middle
        else:
            best, best_fraction = (reached, network), middle
    return Landed(best[1], best_fraction, tries)


def confirmed_speedup(network: nn.Module, stopwatch: Clock, target: float) -> float:
    """How many times faster than dense; the mean of two timings where one could be either side of a limit."""
    reached = stopwatch.speedup(network)
    limits = (target, target * (1 + TOLERANCE))
    if all(abs(reached / limit - 1) > BORDERLINE for limit in limits):
        return reached
    return (reached + stopwatch.speedup(network)) / 2
